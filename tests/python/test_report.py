"""`conclave report`: one page of a run, whatever state its folder is in.

Oracles: metrics.jsonl and job.yaml of real runs; Python's HTML parser for what the page would fetch.
"""

import json
import re
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from conclave.report.charts import MOST_POINTS, thinned
from conclave.report.errors import ReportError
from conclave.report.run import MOST_TABLES, read_run
from ranks import PATIENCE_SECONDS
from small_job import PROGRAM, SmallJob, random_documents, write_tokens


class Page(HTMLParser):
    """The text of a page by the class or tag it stands in, and what it refers to."""

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.headings, self.tiles, self.text = [], [], [], [], ""
        self._open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self._open.append((tag, values.get("class")))
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data", "action", "poster") and value]
        self.references += [value for text in values.values() if text for value in re.findall(r"url\(([^)]*)\)", text)]

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        self.text += data
        if self._open and self._open[-1][0] == "h3":
            self.headings.append(data)
        if self._open and self._open[-1] == ("div", "value"):
            self.tiles.append(data)
        if self._open and self._open[-1][0] == "style":
            self.references += re.findall(r"url\(([^)]*)\)|@import\s*(\S+)", data)


def report(*arguments, code=0):
    ended = subprocess.run([PROGRAM, "report", *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


TRAINING = ["Loss", "Gradient norm", "Learning rate", "Tokens per second"]
EXPERTS = ["Imbalance", "Load of each expert", "Imbalance by layer", "Load over time", "Router", "Dead experts", "Balancing losses"]
MACHINE = ["Memory", "Waiting"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two ranks, stopped and resumed twice, with validation."""
    folder = tmp_path_factory.mktemp("run")
    write_tokens(folder / "validation", random_documents(seed=8, count=4))
    job = SmallJob(folder, {"run.name": "a <b>bold</b> & \"quoted\" run", "run.steps": 4, "checkpoint.every": 2, "parallel.expert_parallel_degree": 2,
                            "data.validation": str(folder / "validation"), "validation.every": 3, "metrics.log_every": 2})
    for steps in (4, 6, 9):
        job.with_keys({"run.steps": steps}).must_run(2)
    return job.with_keys({"run.steps": 9})


@pytest.fixture
def metrics(run, tmp_path):
    """A run's folder that a test may damage: the path of its metrics.jsonl."""
    for name in ("metrics.jsonl", "job.yaml"):
        (tmp_path / name).write_bytes((run.output / name).read_bytes())
    return tmp_path / "metrics.jsonl"


def test_the_page_shows_the_run_and_fetches_nothing(run):
    assert f"wrote {run.output / 'report.html'}" in report(run.output)
    text = (run.output / "report.html").read_text()
    page = Page(text)
    # Within the page (#...) and in it (data:); namespaces are names.
    assert page.references and all(reference.startswith(("#", "data:image/png;base64,")) for reference in page.references), page.references
    assert not {"script", "link", "iframe", "object", "b"} & set(page.tags)
    assert [heading for heading in page.headings if heading in TRAINING + EXPERTS + MACHINE] == TRAINING + EXPERTS + MACHINE
    assert page.tags.count("svg") == page.tags.count("figure") == len(TRAINING + EXPERTS + MACHINE)
    assert run.keys["run.name"] in page.text  # and not as tags

    records = run.metrics()
    assert f"{records[-1]['lm_loss']:,.4f}" in page.tiles and f"{records[-1]['validation_loss']:,.4f}" in page.tiles
    assert f"{records[-1]['expert_imbalance']:,.2f}" in page.tiles
    assert "all 9 steps done" in page.text and "resumed 2 times" in page.text
    for start, record in enumerate(record for record in records if "started_after" in record):
        assert record["started_after"] == [0, 4, 6][start] and record["torch_version"] in page.text and record["conclave_version"] in page.text
    assert "expert_parallel_degree" in page.text and str(run.folder / "tokens") in page.text
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    for reference in page.references:
        assert not reference.startswith("#") or reference[1:] in ids, reference


def test_a_report_is_the_same_each_time_and_replaces_the_old_one(run, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("old")
    report(run.output, "--output", page)
    first = page.read_text()
    report(run.output, "--output", page)
    assert page.read_text() == first != "old" and [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_what_is_no_run_is_refused(run, tmp_path):
    assert "there is no folder" in report(tmp_path / "absent", code=2)
    assert "holds no metrics.jsonl" in report(tmp_path, code=2)
    (tmp_path / "metrics.jsonl").write_text("")
    assert "no whole record yet" in report(tmp_path, code=2)
    (tmp_path / "metrics.jsonl").write_text('{"step":1,"lm_lo')
    assert "no whole record yet" in report(tmp_path, code=2)
    assert "--output is" in report(run.output, "--output", tmp_path / "absent/page.html", code=2)
    assert "--output is" in report(run.output, "--output", tmp_path, code=2)
    assert not list(tmp_path.glob("*.html"))


def test_a_run_in_progress_with_a_torn_line(metrics):
    whole = metrics.read_bytes()
    metrics.write_bytes(whole[: whole.index(b'"lm_loss"', whole.index(b'"step":7,'))])
    assert "note: the last line of metrics.jsonl is not whole" in report(metrics.parent)
    page = Page((metrics.parent / "report.html").read_text())
    assert "step 6 of 9: still running, or stopped" in page.text and "the last line of metrics.jsonl is not whole" in page.text


def test_flaws_are_left_out_and_told(metrics):
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:3], "\x00\x00\x00", lines[2], '{"no": "step"}', *lines[3:]]) + "\n")
    (metrics.parent / "job.yaml").write_text("a: [")
    run = read_run(metrics.parent)
    assert list(run.steps) == list(range(1, 10)) and run.job == {}
    assert len(run.flaws) == 3 and "2 lines" in run.flaws[0] and "1 records" in run.flaws[1] and "job.yaml" in run.flaws[2]


@pytest.mark.parametrize("steps", [1, 2])
def test_of_the_first_steps_there_is_a_page(steps, metrics):
    metrics.write_text("".join(line + "\n" for line in metrics.read_text().splitlines()[:steps]))
    (metrics.parent / "job.yaml").unlink()
    report(metrics.parent)
    page = Page((metrics.parent / "report.html").read_text())
    assert f"{steps} steps done" in page.text and "Loss" in page.headings and "Load of each expert" in page.headings


def test_numbers_that_are_none_and_metrics_that_come_and_go(tmp_path):
    records = [{"step": 1, "lm_loss": 3.0, "mfu": None, "grad_norm": "Infinity", "skipped": 1},
               {"step": 2, "lm_loss": "NaN", "validation_loss": 2.5, "grad_norm": 1.0, "skipped": 0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run = read_run(tmp_path)
    assert np.isnan(run.scalars["validation_loss"][0]) and run.scalars["validation_loss"][1] == 2.5
    assert np.isinf(run.scalars["grad_norm"][0]) and run.last("lm_loss") == 3.0 and "mfu" not in run
    report(tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert "Skipped steps" in page.text and [heading for heading in page.headings if heading in TRAINING] == ["Loss", "Gradient norm"]


def test_a_long_run_is_thinned_and_keeps_its_extremes_and_its_newest(tmp_path):
    count = 3 * MOST_TABLES
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for step in range(1, count + 1):
            loss = 100.0 if step == 777 else 2.0 + step % 2
            file.write(json.dumps({"step": step, "lm_loss": loss, "expert_share_by_layer": [[step, 0.0]]}) + "\n")
    run = read_run(tmp_path)
    tables = run.tables["expert_share_by_layer"]
    assert len(tables.steps) <= MOST_TABLES + 1 and tables.steps[0] == 1 and tables.steps[-1] == count
    assert np.array_equal(tables.values[:, 0, 0], tables.steps)
    assert len(set(np.diff(tables.steps)[:-1])) == 1  # evenly; the newest comes on top
    at, mean, low, high = thinned(run.steps, run.scalars["lm_loss"])
    assert len(at) == MOST_POINTS and high.max() == 100.0 and low.min() == 2.0
    counts = np.diff(np.linspace(0, count, MOST_POINTS + 1).astype(int))
    assert np.sum(mean * counts) == pytest.approx(run.scalars["lm_loss"].sum())
    assert np.all(low <= mean) and np.all(mean <= high) and np.all(np.diff(at) > 0)


def test_reading_says_what_is_missing(tmp_path):
    with pytest.raises(ReportError, match="Give the folder of a run"):
        read_run(tmp_path)

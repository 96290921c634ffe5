"""`conclave report RUN RUN ...`: one page that compares runs.

Oracles: the records and jobs that were written here; Python's HTML parser for what is text.
"""

import json
import re
import subprocess

import numpy as np
import pytest
from conclave.report.comparison import comparison_of, differing_settings, named_runs
from conclave.report.comparison_charts import MOST_RUNS, hours_of
from conclave.report.errors import ReportError
from conclave.report.run import read_run
from ranks import PATIENCE_SECONDS
from small_job import PROGRAM
from test_report import Page
from test_report_damage import HOSTILE, records, write

CURVES = ["Loss by tokens", "Loss by time", "Validation loss by tokens", "Validation loss by time", "Tokens per second", "Peak tensor memory", "Imbalance",
          "Gradient norm"]


def job(name, lr, extra=""):
    return f"run:\n  name: {name}\n  steps: 20\n  output_dir: runs/x\noptimizer:\n  lr: {lr}\n{extra}"


@pytest.fixture
def folders(tmp_path):
    return [write(tmp_path / "a", records(20), job("first", 0.001)), write(tmp_path / "b", records(10), job("second", 0.002, "moe:\n  overload: spill\n"))]


def compared(*folders):
    return comparison_of(named_runs([read_run(folder) for folder in folders]))


def test_results_curves_and_differing_settings(folders):
    text = compared(*folders)
    page = Page(text)
    assert page.headings == CURVES and page.tags.count("svg") == len(CURVES)
    assert "2 runs compared" in page.text and "first" in page.text and "second" in page.text
    assert "2.9000" in page.text and "3.9000" in page.text  # the last losses: 4.9 - step / 10
    assert {key for key, _ in differing_settings(named_runs([read_run(folder) for folder in folders]))} == {"run.name", "optimizer.lr", "moe.overload"}
    assert "optimizer.lr" in page.text and "run.steps" not in page.text and "run.output_dir" not in page.text
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in page.references)
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_the_command_writes_one_page_and_names_what_was_left_out(folders, tmp_path):
    with open(folders[1] / "metrics.jsonl", "a") as file:
        file.write('{"step":11,"lm_')
    done = subprocess.run([PROGRAM, "report", *folders, "--output", tmp_path / "both.html"], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert f"wrote {tmp_path / 'both.html'}" in done.stdout and f"note: {folders[1]}: the last line of metrics.jsonl is not whole" in done.stderr
    assert "second: the last line" in Page((tmp_path / "both.html").read_text()).text
    twice = subprocess.run([PROGRAM, "report", folders[0], folders[0]], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert twice.returncode == 2 and "is given twice" in twice.stderr and not (tmp_path / "report.html").exists()


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = named_runs([read_run(write(tmp_path / place, records(3), job("same", 0.001))) for place in ("one/out", "two/out")])
    assert [run.name for run in runs] == ["same (one/out)", "same (two/out)"]


def test_too_many_runs_are_refused(folders):
    with pytest.raises(ReportError, match=f"at most {MOST_RUNS}"):
        named_runs([read_run(folders[0])] * (MOST_RUNS + 1))


def test_hours_are_the_sum_of_the_steps(tmp_path):
    made = records(4)
    for record, seconds in zip(made, (3600, "NaN", -5, 1800)):
        record["step_seconds"] = seconds
    assert np.array_equal(hours_of(read_run(write(tmp_path, made))), [1.0, 1.0, 1.0, 1.5])


@pytest.mark.parametrize("name", ["tokens", "step_seconds", "lm_loss", "validation_loss", "tokens_per_second", "peak_memory_bytes", "expert_imbalance", "skipped"])
def test_any_value_of_what_is_compared(name, tmp_path):
    made = records(len(HOSTILE) + 5)
    for record, value in zip(made[2:], HOSTILE):
        record[name] = value
    hostile = write(tmp_path / "hostile", made, "run: {name: '<img src=x onerror=y>', steps: .nan}\n")
    page = Page(compared(hostile, write(tmp_path / "whole", records(5))))
    assert "img" not in page.tags and "<img src=x onerror=y>" in page.text
    only = write(tmp_path / "only", [{"step": record["step"], name: value} for record, value in zip(made, HOSTILE)])
    compared(only, hostile).encode("utf-8")


def test_runs_with_nothing_in_common(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    page = Page(compared(write(tmp_path / "b", records(3)), tmp_path / "a"))
    assert "there is no job.yaml" in page.text and "Loss by tokens" in page.headings

"""`conclave report` over anything that a disk, a killed run or a stranger may have left: what is damaged is left out and told, in bounded time.

Oracle: what was written before it was damaged; Python's HTML parser for what is text and what is not.
"""

import json
import math
import os
import random
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from conclave.report.errors import ReportError
from conclave.report.page import page_of
from conclave.report.run import MOST_METRICS, MOST_STARTS, read_run
from test_report import Page

JOB = """run:
  name: small
  steps: 20
optimizer:
  grad_clip: 1.0
model:
  config: model
"""


def records(count=20):
    """What a run writes, of two layers and four experts."""
    made = []
    for step in range(1, count + 1):
        record = {"step": step, "loss": 5.0 - step / 10, "lm_loss": 4.9 - step / 10, "aux_loss": 1.0, "z_loss": 0.5, "grad_norm": 1.0 + step % 3, "lr": 1e-3,
                  "skipped": 0, "tokens": 512 * step, "tokens_per_second": 1000.0 + step, "step_seconds": 0.5, "mfu": 0.3, "data_seconds": 0.01,
                  "gather_wait_seconds": 0.02, "peak_memory_bytes": 2e9, "memory/parameters": 1e9, "memory/gradients": 5e8, "peak_resident_bytes": 3e9,
                  "drop_rate": 0.01, "expert_imbalance": 1.5, "load_entropy": 0.9, "router_confidence": 0.6, "dead_experts": 1,
                  "expert_share": [0.25] * 4, "expert_imbalance_by_layer": [1.4, 1.6], "expert_share_by_layer": [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]]}
        if step % 5 == 0:
            record["validation_loss"] = 5.1 - step / 10
        if step in (1, 11):
            record |= {"started_after": step - 1, "ranks": 2, "device": "cpu", "compute": "fp32", "conclave_version": "1", "torch_version": "2"}
        made.append(record)
    return made


def write(folder, made, job=JOB):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in made))
    (folder / "job.yaml").write_bytes(job if isinstance(job, bytes) else job.encode())
    return folder


def page_text(folder):
    """The page, made as the command makes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return page_of(read_run(folder))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12))
UNREADABLE_JOBS = {
    "alias bomb": BOMB, "alias": "run: &r {name: x}\nother: *r\n", "alias in a loop": "run: &r {name: *r}\n", "deep lists": "[" * 100_000, "deep groups":
    "{a: " * 100_000, "deep blocks": "".join("  " * i + "a:\n" for i in range(400)), "list": "- run\n- model\n", "text": "run", "number": "1", "empty": "",
    "no UTF-8": b"run: {name: \xff\xfe}", "NULs": b"\0" * 5000, "unknown tag": "run: !!python/object/apply:os.system [true]\n", "no date": "run: {name: 2001-99-99}\n",
    "5,000 digits": "run: {steps: " + "9" * 5000 + "}\n", "large": "run: {name: " + "x" * 400_000 + "}\n", "list as a key": "run: {[1]: 2}\n", "open": "a: [",
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE_JOBS)
def test_a_job_that_cannot_be_read_is_left_out(name, tmp_path):
    begin = time.monotonic()
    run = read_run(write(tmp_path, records(3), UNREADABLE_JOBS[name]))
    assert run.job == {} and any("job.yaml cannot be read" in flaw for flaw in run.flaws)
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(("job", "shown"), [
    ("run: [a, b]\nmodel: {config: x}\nmoe: 3\n", "2 entries of job.yaml are no groups of keys and were left out"),
    ("run: {steps: 0x" + "f" * 9000 + "}\n", "(a number of very many digits)"),
    ("run: {steps: [1, 2], name: {a: b}}\n", "3 steps done"),
    ("run: {steps: .nan, name: 2001-01-01}\noptimizer: {grad_clip: .inf}\n", "2001-01-01"),
    ("run: {steps: true}\noptimizer: {grad_clip: 1.0e+308}\n", "true"),
    ("run: {name: '<script>alert(1)</script>'}\n", "<script>alert(1)</script>"),
    ("run: {name: '$\\input{/etc/passwd}$'}\n", "$\\input{/etc/passwd}$"),
    ('run: {name: "\\uD83D half \\x1b[31m"}\n', "small_or_not_read"),
    ("? !!binary aGVsbG8=\n: {a: 1}\n1: {2: 3}\nnull: {null: null}\n", "b'hello'"),
])
def test_a_job_of_unusual_values_is_text(job, shown, tmp_path):
    text = page_text(write(tmp_path, records(3), job))
    page = Page(text)
    if shown != "small_or_not_read":
        assert shown in page.text
    assert "script" not in page.tags and "\x1b" not in text
    text.encode("utf-8")


HOSTILE = [None, True, [], {}, [1], {"a": 1}, [[1.0], [1.0, 2.0]], [["x"]], "text", "NaN", "Infinity", "-Infinity", math.nan, math.inf, 10**400, -(10**400),
           1e308, -1e308, 5e-324, 1e100, 1e99, -1, 0, 2**63, "$\\input{x}$", "<img src=x onerror=y>", "\ud83d", "\x1b]0;title\x07", "9" * 5000,
           [[]], [[1e308] * 4] * 2, [[math.nan] * 4] * 2, [[-1] * 4] * 2, [[None] * 4] * 2, [[0.25] * 5] * 2]


@pytest.mark.parametrize("name", sorted({*records(5)[4], "started_after", "ranks", "torch_version"} - {"step"}))
def test_any_value_under_any_name(name, tmp_path):
    """Of one name all values, one a step; then a fifth of them alone."""
    made = records(len(HOSTILE) + 5)
    for record, value in zip(made[2:], HOSTILE):
        record[name] = value
    run = read_run(write(tmp_path, made))
    assert len(run.steps) == len(made)
    text = page_text(tmp_path)
    page = Page(text)
    assert "img" not in page.tags and "\x1b" not in text and "input" not in page.tags
    text.encode("utf-8")
    for value in HOSTILE[len(name) % 5 :: 5]:
        page_text(write(tmp_path, [{"step": record["step"], "step_seconds": 0.5, name: value} for record in made[:3]]))


def test_damaged_values_are_counted_and_the_others_shown(tmp_path):
    made = records()
    made[3]["lm_loss"] = 10**400
    made[4]["expert_share_by_layer"] = [[0.5, 0.5], [1.0]]
    made[5]["expert_share_by_layer"] = [[0.5, 0.5]]  # of another model
    made[6]["expert_imbalance_by_layer"] = "1.5"
    made[7]["step"] = 3  # comes before
    run = read_run(write(tmp_path, made))
    assert run.flaws == ["1 records of metrics.jsonl are of steps out of order and were left out",
                         "4 values in metrics.jsonl are not what their names say and were left out"]
    assert np.isnan(run.scalars["lm_loss"][3]) and run.scalars["lm_loss"][2] == pytest.approx(4.6) and run.tables["expert_share_by_layer"].values.shape[1:] == (2, 4)
    assert len(run.tables["expert_share_by_layer"].steps) == 17


def test_a_layer_without_experts_is_left_blank(tmp_path):
    made = records()
    for record in made:
        for name in ("expert_imbalance_by_layer", "expert_share_by_layer"):
            record[name].insert(0, None)
    run = read_run(write(tmp_path, made))
    assert run.flaws == []
    shares, imbalance = run.tables["expert_share_by_layer"].values, run.tables["expert_imbalance_by_layer"].values
    assert shares.shape == (20, 3, 4) and np.isnan(shares[:, 0]).all() and shares[3, 2].tolist() == [0.1, 0.2, 0.3, 0.4]
    assert imbalance.shape == (20, 3) and np.isnan(imbalance[:, 0]).all() and imbalance[3, 1:].tolist() == [1.4, 1.6]
    text = page_text(tmp_path)
    assert "layer 1" in text and "layer 2" in text and "layer 0" not in text and "of 8" in text


@pytest.mark.parametrize("steps, left", [
    ([1, 2, 300, 4, 5], [1, 2, 4, 5]), ([1, 2, 300, 299, 5], [1, 2, 5]), ([7 * 10**11, 2, 3], [2, 3]), ([1, 2, 3, 2, 3, 4], [1, 2, 3, 4]),
    ([1, 2, 1, 4], [1, 2, 4]), ([1, 2, 5, 9], [1, 2, 5, 9]), ([5, 5, 6], [5, 6]),
])
def test_a_damaged_step_takes_no_other_with_it(steps, left, tmp_path):
    made = records(len(steps))
    for record, step in zip(made, steps, strict=True):
        record["step"] = step
    run = read_run(write(tmp_path, made))
    assert list(run.steps) == left
    gone = len(steps) - len(left)
    assert run.flaws == ([f"{gone} records of metrics.jsonl are of steps out of order and were left out"] if gone else [])


@pytest.mark.parametrize("line", ['{"step": ' + "[" * 100_000, '{"a": ' * 100_000, '{"step": 1' + "0" * 5000 + "}", '{"step": 1e3}', '{"step": true}', '{"step": -1}',
                                  '{"step": 9999999999999999}', '["step"]', "\0" * 1000, '{"step": "7"}', "null", '{"step": NaN}'])
def test_a_line_that_is_no_record(line, tmp_path):
    folder = write(tmp_path, records())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:5], line, *lines[5:]]) + "\n")
    run = read_run(folder)
    assert run.flaws == ["1 lines of metrics.jsonl are no records and were left out"] and len(run.steps) == 20


def test_much_of_everything_is_bounded(tmp_path):
    """Names, starts, a line without an end."""
    made = [{**record, **{f"name{i}": 1.0 for i in range(200 * n, 200 * n + 200)}, **{f"memory/{n}-{i}": 1e9 for i in range(30)}, "started_after": 0}
            for n, record in enumerate(records(300))]
    folder = write(tmp_path, made)
    with open(folder / "metrics.jsonl", "ab") as file:
        file.truncate(file.tell() - 1)
        file.write(b"\n" + b" " * 40_000_000)
    begin = time.monotonic()
    run = read_run(folder)
    assert len(run.scalars) == MOST_METRICS and len(run.starts) == MOST_STARTS and len(run.steps) == 300
    assert any("of 300 starts of the program the newest 200 are shown" in flaw for flaw in run.flaws)
    page_text(folder)
    assert time.monotonic() - begin < 120


def damage(generator, content):
    """One of the ways in which a file comes to harm, or is made to."""
    at = generator.randrange(len(content))
    end = min(len(content), at + generator.randrange(1, 200))
    ways = [
        lambda: content[:at] + bytes([content[at] ^ 1 << generator.randrange(8)]) + content[at + 1 :],
        lambda: content[:at],
        lambda: content[:at] + content[end:],
        lambda: content[:at] + content[at:end] * 3 + content[end:],
        lambda: content[:at] + bytes(end - at) + content[end:],
        lambda: content[:at] + generator.randbytes(end - at) + content[end:],
        lambda: content[:at] + generator.choice([b"[", b"{", b"]", b"}", b'"', b"\\", b"\n", b",", b":", b"&a ", b"*a", b"e400", b"-", b"9" * 400, b"NaN",
                                                 b"null", b"$\\frac$", b"\\ud83d", b"</svg><script>"]) + content[at:],
        lambda: value_replaced(generator, content),
    ]
    return generator.choice(ways)()


def value_replaced(generator, content):
    lines = content.split(b"\n")
    number = generator.randrange(len(lines))
    try:
        record = json.loads(lines[number])
        record[generator.choice(list(record))] = generator.choice(HOSTILE)
    except (ValueError, AttributeError, TypeError, IndexError):
        return content
    lines[number] = json.dumps(record).encode()
    return b"\n".join(lines)


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 4))])
def test_random_damage(part, tmp_path):
    """240 damaged folders: each is read, one in eight is drawn; none ends otherwise than by a page or the refusal of a folder without a whole record."""
    drawn = 0
    for seed in range(60 * part, 60 * part + 60):
        generator = random.Random(seed)
        folder = write(tmp_path / str(seed), records())
        for name in ("metrics.jsonl", "job.yaml"):
            content = (folder / name).read_bytes()
            for _ in range(generator.randrange(1, 6)):
                content = damage(generator, content) or content
            (folder / name).write_bytes(content)
        try:
            run = read_run(folder)
        except ReportError as error:
            assert "holds no whole record yet" in str(error), f"seed {seed}: {error}"
            continue
        if seed % 8 == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                text = page_of(run)
            page = Page(text)
            assert not {"script", "img", "iframe"} & set(page.tags), f"seed {seed}"
            text.encode("utf-8")
            drawn += 1
    assert drawn >= 5


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "conclave.report", *arguments], capture_output=True, timeout=300)


def test_a_folder_whose_name_is_no_text(tmp_path):
    folder = os.fsencode(tmp_path) + b"/run\xff\xfe\x1b[31m<b>"
    os.mkdir(folder)
    good = write(tmp_path / "good", records(3))
    for name in ("metrics.jsonl", "job.yaml"):
        with open(folder + b"/" + name.encode(), "wb") as file:
            file.write((good / name).read_bytes().replace(b"small", b""))
    done = command(folder, "--output", folder + b"/page\xff.html")
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    with open(folder + b"/page\xff.html", encoding="utf-8") as file:
        text = file.read()
    page = Page(text)
    assert "run\\xff\\xfe\\x1b[31m<b>" in page.text and "b" not in page.tags and "\x1b" not in text
    refused = command(folder + b"/absent", "--output", tmp_path / "page.html")
    assert refused.returncode == 2 and b"\x1b" not in refused.stderr and b"Traceback" not in refused.stderr


@pytest.mark.parametrize("kind", ["fifo metrics", "fifo job", "device", "folder", "link to itself"])
def test_what_is_no_file_is_not_read(kind, tmp_path):
    folder = write(tmp_path / "run", records(3))
    target = folder / ("job.yaml" if kind == "fifo job" else "metrics.jsonl")
    target.unlink()
    if kind.startswith("fifo"):
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to({"device": "/dev/zero", "link to itself": target.name}[kind])
    done = command(folder, "--output", tmp_path / "page.html")
    assert done.returncode == (0 if kind == "fifo job" else 2) and b"Traceback" not in done.stderr
    assert (tmp_path / "page.html").exists() == (kind == "fifo job")


def test_what_is_said_of_a_damaged_run_has_no_words_of_libraries(tmp_path):
    made = records()
    for record in made:
        record["memory/$\\input{x}$ \U0001f408 \x80"] = 1e9
    write(tmp_path, made, BOMB)
    done = command(tmp_path, "--output", tmp_path / "page.html")
    assert done.returncode == 0
    assert done.stderr.decode().splitlines() == ["note: job.yaml cannot be read as a job of the program: the job is not known"]
    assert "$\\input{x}$" in Page((tmp_path / "page.html").read_text(encoding="utf-8")).text

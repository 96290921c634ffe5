"""The output folder: refused before any work when nothing can be written there, and one run's alone while that runs.

Oracle: docs/errors.md for the exit code; the file system for what was there before and must be there after.
"""

import os
import signal

import pytest
from small_job import SmallJob

ENDLESS = {"run.steps": 100000, "checkpoint.every": 100000}


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def as_file(folder):
    (folder / "taken").write_text("mine")
    return folder / "taken"


def below_file(folder):
    return as_file(folder) / "run/a"


def dangling(folder):
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link"


def below_dangling(folder):
    return dangling(folder) / "run"


def in_a_loop(folder):
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop/run"


def with_file_for_checkpoints(folder):
    (folder / "run").mkdir()
    (folder / "run/checkpoints").write_text("mine")
    return folder / "run"


def with_folder_for(name):
    def make(folder):
        (folder / "run" / name).mkdir(parents=True)
        return folder / "run"
    return make


def with_latest_in_a_loop(folder):
    (folder / "run/checkpoints").mkdir(parents=True)
    (folder / "run/checkpoints/latest").symlink_to("latest")
    return folder / "run"


PLACES = [
    ("a-file", as_file, ["taken is not a folder"]),
    ("below-a-file", below_file, ["taken is a file, not a folder"]),
    ("a-link-to-nothing", dangling, ["link is a link to", "nowhere, which is not there"]),
    ("below-a-link-to-nothing", below_dangling, ["link is a link to"]),
    ("a-link-to-itself", in_a_loop, ["loop cannot be examined"]),
    ("a-name-too-long", lambda folder: folder / ("n" * 300), ["File name too long"]),
    ("a-path-too-long", lambda folder: folder / "/".join(["n" * 200] * 30), ["at most 4095 characters"]),
    ("in-proc", lambda folder: "/proc/conclave/run", ["nothing can be made in /proc"]),
    ("checkpoints-is-a-file", with_file_for_checkpoints, ["checkpoints is there and not a folder"]),
    ("metrics-is-a-folder", with_folder_for("metrics.jsonl"), ["metrics.jsonl is there and not a file"]),
    ("lock-is-a-folder", with_folder_for("lock"), ["lock is there and not a file"]),
    ("latest-is-a-folder", with_folder_for("checkpoints/latest"), ["latest is there and not a file"]),
    ("latest-is-a-link-to-itself", with_latest_in_a_loop, ["latest cannot be examined"]),
]


@pytest.mark.parametrize("command", ["train", "validate"])
@pytest.mark.parametrize("make, facts", [pytest.param(make, facts, id=name) for name, make, facts in PLACES])
def test_a_place_that_takes_no_run(command, make, facts, tmp_path):
    (tmp_path / "place").mkdir()
    job = SmallJob(tmp_path, {"run.output_dir": str(make(tmp_path / "place"))})
    job.write()
    before = everything(tmp_path)
    ended = job.run(1, command=command)
    assert ended.codes == [2] and ended.text.count("error:") == 1 and "filesystem error" not in ended.text, ended.text
    for fact in ["run.output_dir is ", "Use a folder that can be made and written", "job.yaml, line ", *facts]:
        assert fact in ended.text, ended.text
    assert everything(tmp_path) == before


def test_all_ranks_refuse_it_once(tmp_path):
    ended = SmallJob(tmp_path, {"run.output_dir": str(below_file(tmp_path))}).run(2)
    assert ended.codes == [2, 2] and ended.text.count("error:") == 1 and "taken is a file" in ended.text, ended.text


@pytest.mark.parametrize("name", ["locked", "new/deep/run", "link"])
def test_validate_leaves_nothing_behind(name, tmp_path):
    (tmp_path / "locked").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "locked")
    job = SmallJob(tmp_path, {"run.output_dir": str(tmp_path / name)})
    job.write()
    before = everything(tmp_path)
    job.must_run(1, command="validate")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("part, mode", [(".", 0o555), ("checkpoints", 0o555), ("metrics.jsonl", 0o444)])
def test_a_folder_that_cannot_be_written(part, mode, tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 1, "checkpoint.every": 1})
    job.must_run()
    (job.output / part).chmod(mode)
    # Root may write anything, unless it gives that right up.
    launcher = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    ended = job.run(1, command="validate", launcher=launcher)
    (job.output / part).chmod(0o755)
    assert ended.codes == [2] and "run.output_dir is " in ended.text and "Permission denied" in ended.text, ended.text


# ---- validate sees what train would refuse


def test_validate_refuses_what_train_would_refuse_to_go_on_from(tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 2, "checkpoint.every": 1, "checkpoint.keep": 3, "schedule.kind": "linear"})
    job.must_run()
    changed = job.with_keys({"optimizer.lr": 3e-3, "run.steps": 4})
    for command in ("validate", "train"):
        ended = changed.run(1, command=command)
        assert ended.codes == [2] and "checkpoint.allow_changed=optimizer.lr,run.steps" in ended.text, ended.text
    allowed = changed.with_keys({"checkpoint.allow_changed": "optimizer.lr,run.steps"})
    ended = allowed.run(1, command="validate")
    assert ended.codes == [0] and "the learning rate jumps" in ended.text, ended.text
    ended = job.with_keys({"checkpoint.resume": "never"}).run(1, command="validate")
    assert ended.codes == [2] and "checkpoint.resume is never" in ended.text, ended.text
    # Where all checkpoints are damaged, a start would not begin anew.
    for manifest in job.output.glob("checkpoints/step-*/manifest.json"):
        manifest.write_text("{}")
    for command in ("validate", "train"):
        ended = job.run(1, command=command)
        assert ended.codes == [2] and "is damaged" in ended.text, ended.text


# ---- two runs in one folder


@pytest.fixture
def running(tmp_path):
    job = SmallJob(tmp_path, ENDLESS)
    with job.start(2) as ranks:
        ranks.wait_until(job.has_steps(3), "step 3")
        yield job, ranks


@pytest.mark.parametrize("ranks, arguments", [(1, []), (2, []), (1, ["--ranks", 2])], ids=["one-rank", "two-ranks", "launcher"])
def test_a_second_run_is_refused_and_names_the_first(ranks, arguments, running):
    job, first = running
    ended = job.run(ranks, arguments=arguments)
    assert set(ended.codes) == {2} and ended.text.count("error:") == 1, ended.text
    for fact in [f"run.output_dir is {job.output}", "another run is using that folder", f"process {first.processes[0].pid} on ", "since 20"]:
        assert fact in ended.text, ended.text
    done = len(job.metrics())
    first.wait_until(job.has_steps(done + 2), "two more steps")  # the first is not disturbed
    first.signal(signal.SIGTERM)
    assert first.wait().codes == [4, 4]
    assert [record["step"] for record in job.metrics()] == list(range(1, len(job.metrics()) + 1))


def test_the_lock_ends_with_its_process_however_that_ends(running):
    job, first = running
    first.kill()
    job.with_keys({"run.steps": 2}).must_run(1)
    assert [record["step"] for record in job.metrics()] == [1, 2]


def test_a_run_that_is_started_while_the_one_before_still_ends_waits_for_it(running):
    job, first = running
    first.signal(signal.SIGSTOP)  # neither ends before it goes on
    second = job.with_keys({"run.steps": 100000, "checkpoint.every": 1}).start(2)
    second.wait_until(lambda: "in use by another run" in "".join(second.output(0)), "that it waits")
    first.signal(signal.SIGTERM)
    first.signal(signal.SIGCONT)
    assert first.wait().codes == [4, 4]
    done = len(job.metrics())
    second.wait_until(job.has_steps(done + 2), "two more steps")
    second.signal(signal.SIGTERM)
    assert second.wait().codes == [4, 4]


def test_another_folder_through_a_link_is_the_same_folder(running, tmp_path):
    job, _ = running
    (tmp_path / "link").symlink_to(job.output)
    ended = job.with_keys({"run.output_dir": str(tmp_path / "link")}).run(1)
    assert ended.codes == [2] and "another run is using that folder" in ended.text, ended.text

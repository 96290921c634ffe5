"""Going back to an older checkpoint, and being started again after that.

Oracle: a run in a folder of its own that never had the abandoned history, bit for bit; the file system for what is put aside.
"""

import json
import shutil
import signal
import subprocess

import pytest
from ranks import PATIENCE_SECONDS
from small_job import PROGRAM, SmallJob

KEYS = {"run.steps": 6, "checkpoint.every": 1, "checkpoint.keep": 3, "moe.moe_load_balancing": "none"}
OTHER_RATE = {"optimizer.lr": 5e-3, "checkpoint.allow_changed": "optimizer.lr"}


def numbers(job):
    return [(record["step"], record["loss"], record["grad_norm"], record["lr"]) for record in job.metrics()]


def checkpoint(job, step):
    return job.output / f"checkpoints/step-{step:08}"


def going_back(job, step, **keys):
    return job.with_keys({"checkpoint.resume": str(checkpoint(job, step)), **keys})


def abandoned(job, number=1):
    folder = job.output / f"checkpoints/abandoned-{number}"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else None


@pytest.fixture
def finished(tmp_path):
    """Steps 4, 5 and 6."""
    job = SmallJob(tmp_path, KEYS)
    job.must_run()
    assert job.checkpoints == ["step-00000004", "step-00000005", "step-00000006"]
    return job


@pytest.fixture
def elsewhere(finished, tmp_path):
    """What a run from step 4 with another learning rate is: in a folder that never held the later steps."""
    (tmp_path / "elsewhere/checkpoints").mkdir(parents=True)
    shutil.copytree(checkpoint(finished, 4), tmp_path / "elsewhere/checkpoints/step-00000004")
    job = finished.with_keys({**OTHER_RATE, "run.output_dir": str(tmp_path / "elsewhere"), "run.steps": 9})
    job.must_run()
    return job


def test_what_is_abandoned_is_put_aside(finished, elsewhere):
    before = finished.metrics()
    # Two checkpoints a run keeps: those aside are not among them.
    job = going_back(finished, 4, **OTHER_RATE, **{"run.steps": 9, "checkpoint.keep": 2})
    ended = job.must_run()
    assert "going back to" in ended.text and "2 checkpoints (step-00000005 to step-00000006)" in ended.text, ended.text
    assert job.checkpoints == ["step-00000008", "step-00000009"]
    assert abandoned(job) == ["job.yaml", "metrics.jsonl", "step-00000005", "step-00000006"]
    aside = job.output / "checkpoints/abandoned-1"
    assert [json.loads(line)["step"] for line in (aside / "metrics.jsonl").open()] == [record["step"] for record in before]
    assert numbers(job)[4:] == numbers(elsewhere)
    # The abandoned ones are whole, and tools read them.
    verified = subprocess.run([PROGRAM, "ckpt", "verify", aside / "step-00000006"], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert verified.returncode == 0, verified
    listed = subprocess.run([PROGRAM, "ckpt", "list", aside], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert "step-00000005" in listed.stdout and "step-00000006" in listed.stdout, listed
    listed = subprocess.run([PROGRAM, "ckpt", "list", job.output], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert "step-00000006" not in listed.stdout and f"{aside}: 2 more, put aside" in listed.stdout, listed


def test_a_damaged_newest_one_never_falls_back_to_what_is_abandoned(finished):
    job = going_back(finished, 4, **OTHER_RATE, **{"run.steps": 5})
    job.must_run()
    (shard,) = checkpoint(job, 5).glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    ended = job.with_keys({"checkpoint.resume": "auto", "run.steps": 7}).must_run()
    assert "going on after step 4" in ended.text, ended.text


@pytest.mark.parametrize("key", ["exports", "twice"])
def test_going_back_again(key, finished):
    job = going_back(finished, 5, **{"run.steps": 7})
    job.must_run()
    assert abandoned(job) == ["job.yaml", "metrics.jsonl", "step-00000006"]
    # Another checkpoint is another order: 5, 6 and 7 were kept.
    export = {"checkpoint.export_every": 1} if key == "exports" else {}
    if export:
        (job.output / "export/step-00000007").mkdir(parents=True)
        (job.output / "export/step-00000006").mkdir()
    again = job.with_keys({"checkpoint.resume": str(checkpoint(job, 6)), "run.steps": 8, **export})
    # 6 and 7 come from 5 by its path; asked for by another path, 6 is gone back to.
    ended = again.must_run()
    assert "going on after step 6" in ended.text, ended.text
    assert "step-00000007" in abandoned(again, 2)
    if export:
        assert sorted(path.name for path in (again.output / "export").iterdir()) == ["step-00000006", "step-00000007", "step-00000008"]
        assert [path.name for path in (again.output / "checkpoints/abandoned-2/export").iterdir()] == ["step-00000007"]


def preempted(job, done):
    """Stops the job by a signal when its metrics have so many steps; the step of its newest checkpoint then."""
    running = job.start()
    running.wait_until(job.has_steps(done), f"step {done}")
    running.signal(signal.SIGTERM)
    ended = running.wait()
    assert ended.codes == [4], ended.text
    return max(int(name.removeprefix("step-")) for name in job.checkpoints)


ENDLESS = {"run.steps": 100000, "checkpoint.every": 100000}


def test_a_preempted_job_goes_on_from_its_own_newest(finished):
    job = going_back(finished, 4, **OTHER_RATE, **ENDLESS)
    first = preempted(job, 8)
    assert first >= 8
    second = preempted(job, first + 3)  # the same job, started again
    assert second >= first + 3
    assert [record["step"] for record in job.metrics()] == list(range(1, second + 1))
    assert abandoned(job, 2) is None
    ended = job.with_keys({"run.steps": second + 1}).must_run()
    assert f"going on after step {second}" in ended.text and "goes on from its own newest checkpoint" in ended.text, ended.text


def go_back(path):
    return subprocess.run([PROGRAM, "ckpt", "go-back", str(path)], capture_output=True, text=True, timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("resume", ["the path", "auto"])
def test_going_back_to_the_same_place_again(resume, finished, elsewhere):
    """By one command, with no file moved by hand; both branches are put aside."""
    job = going_back(finished, 4, **OTHER_RATE, **{"run.steps": 9, "checkpoint.keep": 9})
    job.must_run()
    ended = job.with_keys({"run.steps": 10, "checkpoint.allow_changed": "optimizer.lr,run.steps"}).must_run()
    assert f"To go back once more, first run conclave ckpt go-back {checkpoint(job, 4)}." in ended.text, ended.text
    ended = go_back(checkpoint(job, 4))
    assert ended.returncode == 0 and "goes on after step 4" in ended.stdout and "abandoned-2" in ended.stdout + ended.stderr, ended
    assert job.checkpoints == ["step-00000004"] and "step-00000010" in abandoned(job, 2)
    again = job if resume == "the path" else job.with_keys({"checkpoint.resume": "auto"})
    again.must_run()
    assert numbers(again)[4:] == numbers(elsewhere)
    assert again.checkpoints == [f"step-{step:08}" for step in range(4, 10)]


def test_going_back_by_the_command_is_refused(finished, tmp_path):
    """Where there is no run to go back, or it is running."""
    shutil.copytree(checkpoint(finished, 5), tmp_path / "alone/step-00000005")
    for path, facts in [(tmp_path / "alone/step-00000005", "not in the checkpoints folder of a run"), (tmp_path / "none", "there is no folder"),
                        (finished.folder / "config.json", "there is no folder")]:
        ended = go_back(path)
        assert ended.returncode == 2 and facts in ended.stderr and ended.stderr.count("error:") == 1, ended
    assert go_back(checkpoint(finished, 6)).returncode == 0 and len(finished.checkpoints) == 3 and abandoned(finished) is None
    running = finished.with_keys(ENDLESS)
    with running.with_keys({"checkpoint.allow_changed": "run.steps"}).start() as rank:
        rank.wait_until(running.has_steps(8), "step 8")
        ended = go_back(checkpoint(finished, 5))
        assert ended.returncode == 2 and "another run is using that folder" in ended.stderr, ended
        assert abandoned(finished) is None


def test_a_preempted_branch_of_another_run_goes_on_from_its_own_newest(finished, tmp_path):
    job = going_back(finished, 5, **ENDLESS, **{"run.output_dir": str(tmp_path / "branch")})
    first = preempted(job, 3)
    second = preempted(job, first - 5 + 3)
    assert [record["step"] for record in job.metrics()] == list(range(6, second + 1))
    # Also when the run that it came from has removed the checkpoint meanwhile (checkpoint.keep).
    shutil.rmtree(checkpoint(finished, 5))
    ended = job.with_keys({"run.steps": second + 1}).must_run()
    assert f"going on after step {second}" in ended.text, ended.text
    assert finished.checkpoints == ["step-00000004", "step-00000006"]


def test_a_damaged_own_one_falls_back_to_the_one_before(finished):
    job = going_back(finished, 4, **{"run.steps": 8})
    job.must_run()
    for shard in checkpoint(job, 8).glob("*.safetensors"):
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1  # only its hash tells
        shard.write_bytes(data)
    ended = job.with_keys({"run.steps": 9}).must_run()
    assert "Passing over step-00000008" in ended.text and "going on after step 7" in ended.text, ended.text


def test_a_folder_of_another_history_is_put_aside_whole(finished, tmp_path):
    other = finished.with_keys({"run.output_dir": str(tmp_path / "other"), "run.seed": 7, "run.steps": 3, "metrics.tensorboard": True})
    other.must_run()
    job = going_back(finished, 5, **{"run.output_dir": str(tmp_path / "other"), "run.steps": 7, "metrics.tensorboard": True})
    job.must_run()
    assert abandoned(job) == ["job.yaml", "metrics.jsonl", "step-00000001", "step-00000002", "step-00000003", "tensorboard"]
    assert [record["step"] for record in job.metrics()] == [6, 7]
    assert job.checkpoints == ["step-00000006", "step-00000007"]


def test_what_has_the_name_of_an_abandoned_folder_stays(finished):
    (finished.output / "checkpoints/abandoned-1").write_text("mine")
    (finished.output / "checkpoints/abandoned-2").symlink_to("nowhere")
    going_back(finished, 5, **{"run.steps": 7}).must_run()
    assert abandoned(finished, 3) == ["job.yaml", "metrics.jsonl", "step-00000006"]
    assert (finished.output / "checkpoints/abandoned-1").read_text() == "mine"


def test_a_refused_start_leaves_the_history_as_it_was(finished):
    before = numbers(finished)
    ended = going_back(finished, 4, **{"run.seed": 9}).run(2)
    assert ended.codes == [2, 2] and "run.seed is 9" in ended.text, ended.text
    assert len(finished.checkpoints) == 3 and abandoned(finished) is None and numbers(finished) == before


@pytest.mark.parametrize("command", ["train", "validate"])
@pytest.mark.parametrize("name, facts", [
    ("out", ["that is a folder of checkpoints", "step-00000006"]), ("out/checkpoints", ["that is a folder of checkpoints", "step-00000006"]),
    ("empty", ["there is no checkpoint", "manifest.json"]), ("none/here", ["no such folder"])])
def test_a_path_without_a_checkpoint(command, name, facts, finished, tmp_path):
    (tmp_path / "empty").mkdir()
    ended = finished.with_keys({"checkpoint.resume": str(tmp_path / name)}).run(1, command=command)
    assert ended.codes == [2] and ended.text.count("error:") == 1, ended.text
    for fact in ["checkpoint.resume is ", *facts]:
        assert fact in ended.text, ended.text

"""The program from Python: a job is trained, planned and refused as by its command line.

Oracle: the program's own files and output.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from ranks import PATIENCE_SECONDS, program
from small_job import SmallJob

import conclave


@pytest.fixture(autouse=True)
def _program_is_built():
    if not program().exists():
        pytest.skip(f"{program()} is not built")


def test_train_and_read_metrics(tmp_path):
    small = SmallJob(tmp_path)
    job = conclave.Job(small.write(), {"run.steps": 2, "run.output_dir": str(tmp_path / "elsewhere")})
    job.validate(world=2)
    run = job.train(ranks=2, quiet=True)
    assert run.folder == tmp_path / "elsewhere"
    assert [line["step"] for line in run.metrics] == [1, 2]
    assert run.metrics == conclave.read_metrics(run.folder)
    assert all(line["loss"] > 0 for line in run.metrics)


def test_a_folder_that_the_job_names_by_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "under$score")
    file = SmallJob(tmp_path, {"run.output_dir": "~/runs/${PLACE}/$PLACE/$$5", "run.steps": 1}).write()
    run = conclave.Job(file).train(quiet=True)
    assert run.folder == tmp_path / "runs/under$score/under$score/$5" and len(run.metrics) == 1


def test_ctrl_c_saves_before_it_raises(tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 100000, "checkpoint.every": 100000})
    # Where the tests run in the background of a shell, Ctrl-C is ignored; not so in a user's Python.
    script = f"""import signal, conclave
signal.signal(signal.SIGINT, signal.default_int_handler)
conclave.Job({str(job.write())!r}).train(quiet=True)"""
    # A group of its own, which Ctrl-C reaches as a whole.
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not job.has_steps(3)():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode != 0 and "KeyboardInterrupt" in said and "SIGINT ended the run after step" in said, said
    assert len(job.checkpoints) == 1


def test_plan_has_what_the_program_prints(tmp_path):
    file = SmallJob(tmp_path).write()
    printed = json.loads(subprocess.run([program(), "plan", file, "--world", "2", "--device", "cpu", "--json"], capture_output=True, text=True, check=True).stdout)
    plan = conclave.plan(file, world=2, device="cpu")

    def as_dictionary(value):
        if hasattr(value, "__dict__"):
            return {key: as_dictionary(inner) for key, inner in vars(value).items()}
        return [as_dictionary(inner) for inner in value] if isinstance(value, list) else value

    assert as_dictionary(plan) == printed
    assert plan.fits is True


def test_mistakes_are_exceptions(tmp_path):
    file = SmallJob(tmp_path).write()
    with pytest.raises(conclave.ConfigError, match="must divide evenly"):
        conclave.Job(file, {"parallel.expert_parallel_degree": 3}).validate(world=3)
    with pytest.raises(conclave.ConfigError, match="Did you mean"):
        conclave.Job(file, {"run.stepz": 3}).train(quiet=True)
    with pytest.raises(conclave.ConfigError, match="does not exist"):
        conclave.Job(tmp_path / "nowhere.yaml")
    with pytest.raises(conclave.CheckpointError, match="metrics.jsonl"):
        conclave.read_metrics(tmp_path)

"""Ranks that die or hang, steps that are not finite, and kills at random moments of a save (test_checkpoint_faults.py: at chosen ones).

Oracle: docs/errors.md for the exit codes; the rank, step or parameter that the test itself broke must be named; what is on disk after a kill must
be what an undisturbed run has there. Nothing is asserted about how fast a loss is seen, except that the job ends by itself.
"""

import os
import random
import re
import shutil
import signal
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from ranks import process_of_rank
from small_job import SmallJob

ENDLESS = {"run.steps": 1000000, "run.timeout_seconds": 10}


# ---- lost ranks


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_the_other_ends(victim, tmp_path):
    job = SmallJob(tmp_path, {**ENDLESS, "parallel.expert_parallel_degree": 2})
    ranks = job.start(2)
    ranks.wait_until(job.has_steps(3), "step 3")
    ranks.processes[victim].send_signal(signal.SIGKILL)
    ended = ranks.wait()
    assert ended.codes[victim] == -signal.SIGKILL and ended.codes[1 - victim] == 3, ended.text
    lines = ended.error_lines
    assert len(lines) == 1 and f"rank {victim} is lost" in lines[0], ended.text


@pytest.mark.parametrize("absent", [0, 1])
def test_a_rank_that_never_comes_is_named(absent, tmp_path):
    ranks = SmallJob(tmp_path, {"run.timeout_seconds": 5}).start(2)
    ranks.processes[absent].send_signal(signal.SIGKILL)  # before it can have reached the others
    ended = ranks.wait()
    assert ended.codes[absent] == -signal.SIGKILL and ended.codes[1 - absent] == 3, ended.text
    lines = ended.error_lines
    assert len(lines) == 1 and f"rank {absent}" in lines[0], ended.text


@pytest.mark.slow
@pytest.mark.parametrize("victims", [[2], [0], [1, 2]])
def test_killed_ranks_of_four_are_named_once(victims, tmp_path):
    job = SmallJob(tmp_path, {**ENDLESS, "parallel.expert_parallel_degree": 2, "parallel.hybrid_shard_degree": 1})
    ranks = job.start(4)
    ranks.wait_until(job.has_steps(3), "step 3")
    for victim in victims:
        ranks.processes[victim].send_signal(signal.SIGKILL)
    ended = ranks.wait()
    assert ended.codes == [-signal.SIGKILL if rank in victims else 3 for rank in range(4)], ended.text
    assert len(ended.error_lines) == 1 and re.search(rf"ranks? {victims[0]}\b.* (is|are) lost", ended.error_lines[0]), ended.text


def test_the_launcher_says_which_rank_was_killed(tmp_path):
    job = SmallJob(tmp_path, ENDLESS)
    launcher = job.start(1, arguments=["--ranks", 2])
    launcher.wait_until(job.has_steps(3), "step 3")
    os.kill(process_of_rank(str(job.folder), 1), signal.SIGKILL)
    ended = launcher.wait()
    assert ended.codes == [3], ended.text
    assert "rank 1 is lost" in ended.errors[0], ended.text
    with pytest.raises(AssertionError):
        process_of_rank(str(job.folder), 0)  # nothing is left behind


# ---- steps that are not finite


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    job = SmallJob(tmp_path_factory.mktemp("weights"), {"run.steps": 1, "checkpoint.every": 1})
    job.must_run()
    return job.must_export(job.folder / "weights")


def broken_weights(weights, folder, name, value):
    shutil.copytree(weights, folder / "weights")
    tensors = load_file(folder / "weights/model.safetensors")
    tensors[name].flat[0] = value
    save_file(tensors, folder / "weights/model.safetensors")
    return folder / "weights"


NOT_FINITE = [
    ("lm_head.weight", np.inf), ("model.layers.1.block_sparse_moe.gate.weight", np.nan),
    pytest.param("model.norm.weight", np.nan, marks=pytest.mark.slow), pytest.param("model.layers.1.self_attn.q_proj.weight", np.nan, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name, value", NOT_FINITE)
def test_steps_that_are_not_finite_are_skipped_on_all_ranks(name, value, weights, tmp_path):
    start = broken_weights(weights, tmp_path, name, value)
    job = SmallJob(tmp_path, {"run.steps": 9, "model.init_from": str(start), "optimizer.max_skipped_steps": 3, "parallel.expert_parallel_degree": 2,
                              "checkpoint.every": 1})
    ended = job.run(2)
    assert ended.codes[0] == 1 and ended.codes[1] in (1, 3), ended.text
    for step in (1, 2, 3):
        assert f"step {step} was skipped on all ranks" in ended.text
    assert "step 4" not in ended.text
    lines = ended.error_lines
    assert len(lines) == 1 and "3 steps in a row" in lines[0] and "optimizer.max_skipped_steps" in lines[0], ended.text
    assert [record["skipped"] for record in job.metrics()] == [1, 1, 1]
    # No step has changed a weight: what was saved between is what the run began with, not-a-number included.
    job.must_export(tmp_path / "after")
    before, after = load_file(start / "model.safetensors"), load_file(tmp_path / "after/model.safetensors")
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(after[key].view(np.uint32), before[key].view(np.uint32), err_msg=key)


def test_a_gradient_that_is_not_finite_names_its_units(weights, tmp_path):
    # One head weight of 1e38 gives finite logits and a finite loss, and a gradient of about 1e38 for the last hidden state. Each RMSNorm on the way
    # back divides by the root mean square of its input, less than 0.02 here, so beyond the head's norm the gradient leaves fp32's range.
    start = tmp_path / "weights"
    shutil.copytree(weights, start)
    tensors = load_file(start / "model.safetensors")
    tensors["lm_head.weight"].flat[0] = 1e38
    tensors["model.embed_tokens.weight"] *= 1e-3
    save_file(tensors, start / "model.safetensors")
    job = SmallJob(tmp_path, {"run.steps": 4, "model.init_from": str(start), "optimizer.max_skipped_steps": 2, "data.micro_batch_size": 1})
    ended = job.run(2)
    assert 1 in ended.codes, ended.text
    first = job.metrics()[0]
    assert np.isfinite(first["loss"]) and first["skipped"] == 1
    assert re.search(r"step 1 was skipped on all ranks: not finite: gradient of embedding, layers\.0, layers\.1$", ended.text, re.MULTILINE), ended.text


# ---- saves that are cut short


def finished_run(folder, steps):
    job = SmallJob(folder, {"run.steps": steps, "checkpoint.every": 2, "checkpoint.keep": 2, "parallel.expert_parallel_degree": 2})
    job.must_run(2)
    return job


def losses(job):
    return [(record["step"], record["loss"], record["grad_norm"]) for record in job.metrics()]


def kill_and_go_on(folder, kills, seed):
    """Kills both ranks at random moments of a run that saves after every second step; then the same command must end as if nothing had been."""
    steps = 12
    (folder / "undisturbed").mkdir()
    expected = finished_run(folder / "undisturbed", steps)
    (folder / "killed").mkdir()
    job = SmallJob(folder / "killed", {**expected.keys, "run.output_dir": str(folder / "killed/out"), "model.config": str(folder / "killed/config.json"),
                                       "data.train": str(folder / "killed/tokens")})
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(kills):
        before = set(job.checkpoints)
        ranks = job.start(2)
        # A new name in the folder: a save has begun, or has put its result in place. The kill comes within the next moments.
        folder_of_checkpoints = job.output / "checkpoints"
        seen = {path.name for path in folder_of_checkpoints.glob("*")}
        while all(process.poll() is None for process in ranks.processes):
            if {path.name for path in folder_of_checkpoints.glob("*")} - seen:
                break
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.03))
        ranks.kill()
        ranks.wait()
        if before:  # what was there can still be loaded
            job.must_export(folder / "export")
    job.must_run(2)
    assert losses(job) == losses(expected)
    assert job.checkpoints == expected.checkpoints
    # No half-written folder stays behind.
    names = {path.name for path in (job.output / "checkpoints").iterdir()}
    assert names == {path.name for path in (expected.output / "checkpoints").iterdir()}


def test_a_kill_while_saving_costs_no_older_checkpoint(tmp_path):
    kill_and_go_on(tmp_path, kills=3, seed=20)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_kills_at_many_moments(seed, tmp_path):
    kill_and_go_on(tmp_path, kills=8, seed=seed)

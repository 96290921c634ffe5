"""A job that saves, and what an undisturbed run of it has in the end: losses, gradient norms, checkpoints and weights, bit for bit."""

import hashlib

from small_job import SmallJob

RANKS = 2
SAVED = [2, 4, 6]
KEYS = {"run.steps": 6, "checkpoint.every": 2, "checkpoint.keep": 3, "parallel.expert_parallel_degree": 2}


def names(steps):
    return [f"step-{step:08}" for step in steps]


def losses(job):
    return [(record["step"], record["loss"], record["grad_norm"]) for record in job.metrics()]


def weights(job):
    """A hash over the weights of the newest checkpoint, in the export's order: not of the layout's files."""
    job.must_export(job.folder / "export")
    return hashlib.sha256((job.folder / "export/model.safetensors").read_bytes()).hexdigest()


def assert_like_undisturbed(job, undisturbed, steps=SAVED):
    _, expected_losses, expected_weights = undisturbed
    assert losses(job) == expected_losses
    assert job.checkpoints == names(steps)
    left = {path.name for path in (job.output / "checkpoints").iterdir()} - set(names(steps)) - {"latest"}
    assert not left, f"left behind: {left}"
    assert (job.output / "checkpoints/latest").read_text() == names(steps)[-1] + "\n"
    assert weights(job) == expected_weights


def run_undisturbed(folder):
    job = SmallJob(folder, KEYS)
    job.must_run(RANKS)
    assert job.checkpoints == names(SAVED)
    return job, losses(job), weights(job)

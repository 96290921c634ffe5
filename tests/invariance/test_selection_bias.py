"""The selection bias of `moe_load_balancing: bias` belongs to the run: it is resumed, evaluated with, and missed by an export that has no place for it.

Oracle: the same run without the stop, bit for bit.
"""

import json

import pytest
from small_job import SmallJob

KEYS = {"moe.moe_load_balancing": "bias", "moe.bias_update_rate": 0.05, "parallel.expert_parallel_degree": 2, "checkpoint.every": 4}


def numbers(job):
    return [[record[name] for name in ("step", "loss", "grad_norm", "expert_imbalance")] for record in job.metrics()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    job = SmallJob(tmp_path_factory.mktemp("unbroken"), {**KEYS, "run.steps": 12})
    job.must_run(2)
    return job


def test_a_resumed_run_has_its_bias(unbroken, tmp_path):
    job = SmallJob(tmp_path, {**KEYS, "run.steps": 8})
    job.must_run(2)
    job.with_keys({"run.steps": 12}).must_run(2)
    assert numbers(job) == numbers(unbroken)


def test_evaluation_uses_the_bias_and_an_export_says_that_it_does_not(unbroken):
    job = unbroken.with_keys({"data.validation": str(unbroken.folder / "tokens")})

    def loss(rule):
        keys = {"moe.moe_load_balancing": rule, **({} if rule == "bias" else {"moe.bias_update_rate": 0.001})}
        ended = job.with_keys(keys).must_run(2, "eval", ["--json"])
        return json.loads(ended.outputs[0].splitlines()[-1])["validation_loss"]

    # Other experts, another loss: the bias after 12 steps at this rate is larger than the differences of the scores.
    assert loss("bias") != loss("none")
    ended = job.export(job.folder / "export")
    assert ended.returncode == 0
    assert "selection bias" in ended.stderr

"""Which samples a step and a validation are of: none skipped, none repeated, whatever changes on the way.

Oracle: with a learning rate that moves no weight, the loss of a step is the mean of its samples' losses, so that the losses of a run of one sample a step
say what every other division into steps must have: means of them, over the samples that are next. Their order is held by tests/parity.
"""

import json

import numpy as np
import pytest
from small_job import SmallJob, random_documents, write_tokens

# Weights are about 1e-2: adding 1e-30 changes no bit of them.
STILL = {"optimizer.lr": 1e-30, "optimizer.weight_decay": 0, "moe.moe_load_balancing": "none", "data.micro_batch_size": 1, "checkpoint.every": 1000,
         "checkpoint.keep": 100}
# Means of fp32 losses, summed in another order.
TOLERANCE = 1e-6
IN_EPOCH = 20  # samples of 16 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """320 tokens and the target of the last one, and the loss of each sample of the first three epochs."""
    folder = tmp_path_factory.mktemp("samples")
    job = job_in(folder)
    write_tokens(folder / "tokens", [np.concatenate(random_documents(count=4))[: 16 * IN_EPOCH + 1]])
    job.with_keys({"run.steps": 3 * IN_EPOCH}).must_run()
    return folder


def job_in(folder, name="one", **keys):
    return SmallJob(folder, {**STILL, "run.output_dir": str(folder / name), **{key.replace("__", "."): value for key, value in keys.items()}})


def losses_of_samples(folder):
    return [record["lm_loss"] for record in job_in(folder).metrics()]


def state_of(job):
    name = job.checkpoints[-1]
    return json.loads((job.output / "checkpoints" / name / "manifest.json").read_text())["content"]["state"]


CHANGES = {
    # (sequences of a step, ranks, steps) one after the other
    "larger": [(4, 1, 3), (8, 1, 2)],
    "smaller": [(8, 1, 2), (4, 1, 3)],
    "more ranks, and through the end of an epoch": [(3, 1, 4), (4, 2, 3), (1, 1, 2)],
    "fewer ranks": [(6, 2, 2), (5, 1, 3)],
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_batch_size_goes_on_with_the_next_sample(name, folder):
    sample, step, expected = 0, 0, losses_of_samples(folder)
    for sequences, ranks, steps in CHANGES[name]:
        job = job_in(folder, name, run__steps=step + steps, data__global_batch_size=sequences, checkpoint__allow_changed="data.global_batch_size")
        job.must_run(ranks)
        records = job.metrics()
        assert len(records) == step + steps
        for record in records[step:]:
            assert record["lm_loss"] == pytest.approx(np.mean(expected[sample:sample + sequences]), rel=TOLERANCE), (record["step"], sample)
            sample += sequences
            assert record["tokens"] == 16 * sample
        step += steps
        state = state_of(job)
        assert (state["step"], state["samples"], state["tokens"]) == (step, sample, 16 * sample)


def test_another_sequence_length_between_two_epochs_is_exact(folder):
    short = job_in(folder, "short", data__sequence_length=8, run__steps=2 * IN_EPOCH + 5)  # an epoch and 5 samples
    short.must_run()
    expected = [record["lm_loss"] for record in short.metrics()][2 * IN_EPOCH:]

    job = job_in(folder, "shortened", run__steps=IN_EPOCH)
    job.must_run()
    job = job.with_keys({"data.sequence_length": 8, "run.steps": IN_EPOCH + 5, "checkpoint.allow_changed": "data.sequence_length"})
    ended = job.must_run()
    assert "another order" not in ended.text
    records = job.metrics()[IN_EPOCH:]
    assert [record["lm_loss"] for record in records] == pytest.approx(expected[:5], rel=TOLERANCE)
    assert [record["tokens"] for record in records] == [16 * IN_EPOCH + 8 * n for n in range(1, 6)]
    state = state_of(job)
    assert (state["samples"], state["tokens"]) == (2 * IN_EPOCH + 5, 16 * IN_EPOCH + 8 * 5)


def test_another_sequence_length_within_an_epoch_says_what_is_not_exact(folder):
    job = job_in(folder, "within", run__steps=5)
    job.must_run()
    job = job.with_keys({"data.sequence_length": 32, "run.steps": 6, "checkpoint.allow_changed": "data.sequence_length"})
    ended = job.must_run()
    assert "data.sequence_length gives epoch 1 another order, and 25.0 % of it is read" in ended.text, ended.text
    assert (state_of(job)["samples"], job.metrics()[-1]["tokens"]) == (3 + 1, 5 * 16 + 32)  # 80 tokens: two samples and a half


def test_other_data_is_read_from_its_beginning(folder):
    job = job_in(folder, "other-data", run__steps=7)
    job.must_run()
    write_tokens(folder / "others", [np.concatenate(random_documents(seed=11, count=4))[: 16 * IN_EPOCH + 1]])
    job_in(folder, "only-others", data__train=str(folder / "others"), run__steps=3).must_run()
    expected = [record["lm_loss"] for record in job_in(folder, "only-others").metrics()]
    job = job.with_keys({"data.train": str(folder / "others"), "run.steps": 10, "checkpoint.allow_changed": "data.train"})
    assert "read from its beginning" in job.must_run().text
    assert [record["lm_loss"] for record in job.metrics()[7:]] == pytest.approx(expected, rel=TOLERANCE)
    assert job.metrics()[-1]["tokens"] == 10 * 16


# ---- validation

LAYOUTS = [(1, 1), (1, 3), (2, 1), (2, 3), (4, 2)]  # ranks, micro_batch_size: of 7 samples the last micro-step holds some, one or none a rank


@pytest.fixture(scope="module")
def held_out(folder):
    """Eleven samples, and the first seven of them as a set of their own."""
    tokens = np.concatenate(random_documents(seed=5, count=2))
    write_tokens(folder / "validation", [tokens[: 16 * 11 + 1]])
    write_tokens(folder / "first-seven", [tokens[: 16 * 7 + 1]])
    job = job_in(folder, "seven", run__steps=1, data__validation=str(folder / "first-seven"), validation__every=1, validation__samples=0)
    job.must_run()
    return job.metrics()[-1]["validation_loss"]


@pytest.mark.parametrize("ranks, rows", LAYOUTS)
def test_validation_is_of_the_same_samples_on_every_layout(ranks, rows, held_out, folder):
    job = job_in(folder, f"validated-{ranks}-{rows}", run__steps=1, data__validation=str(folder / "validation"), validation__every=1,
                 validation__samples=7, data__micro_batch_size=rows)
    ended = job.must_run(ranks)
    record = job.metrics()[-1]
    assert record["validation_loss"] == pytest.approx(held_out, rel=TOLERANCE)
    assert record["validation_samples"] == 7
    assert f"over the first 7 of 11 samples of {folder / 'validation'} (112 tokens)" in ended.text, ended.text


@pytest.mark.parametrize("samples", [0, 11, 5000])
def test_a_validation_of_the_whole_set_is_what_eval_says(samples, held_out, folder):
    job = job_in(folder, f"whole-{samples}", run__steps=1, data__validation=str(folder / "validation"), validation__every=1, validation__samples=samples,
                 data__micro_batch_size=3)
    ended = job.must_run(2)
    assert "over all 11 samples" in ended.text, ended.text
    evaluated = job.must_run(1, command="eval", arguments=["--json"])
    said = json.loads(evaluated.outputs[0].splitlines()[-1])
    assert said["samples"] == job.metrics()[-1]["validation_samples"] == 11
    assert job.metrics()[-1]["validation_loss"] == pytest.approx(said["validation_loss"], rel=TOLERANCE)
    assert said["validation_loss"] != pytest.approx(held_out, rel=1e-4)  # the comparisons can fail

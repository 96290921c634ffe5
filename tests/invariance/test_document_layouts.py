"""Training on documents that do not see each other: the same at every layout, with recomputation and after a stop.

Oracle: the run of one rank. That it is the right one is for tests/parity/test_documents.py.
Tolerance: that of test_layouts.py: fp32 sums in another order, through some steps.
"""

import numpy as np
import pytest
from small_job import SmallJob, random_documents, write_tokens

TOLERANCE = 1e-4
STEPS, ROWS = 6, 4
NAMES = ("step", "loss", "grad_norm", "lm_loss", "targets")


def cut(documents, lengths):
    """The tokens of the documents in pieces of these lengths, again and again."""
    tokens = np.concatenate(documents)
    ends = np.cumsum(np.resize(lengths, len(tokens)))
    return [piece for piece in np.split(tokens, ends[ends < len(tokens)]) if len(piece)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    job = SmallJob(folder, {
        "run.steps": STEPS, "data.document_mask": True, "data.micro_batch_size": ROWS, "data.global_batch_size": ROWS, "checkpoint.every": STEPS // 2,
        "data.train": [{"path": str(folder / "short"), "weight": 2}, {"path": str(folder / "masked"), "weight": 1}],
        "data.validation": str(folder / "short"), "validation.every": STEPS, "validation.samples": 5})
    write_tokens(folder / "short", cut(random_documents(seed=1, count=4), [3, 1, 20, 7, 50]))
    masked = cut(random_documents(seed=2, count=2), [11, 5])
    write_tokens(folder / "masked", masked, mask=np.random.default_rng(3).integers(0, 2, sum(map(len, masked))))
    job.must_run()
    return job


def numbers(job):
    return [[record[name] for name in NAMES] for record in job.metrics()]


def variant(job, folder, keys):
    return job.with_keys({"run.output_dir": str(folder / "out"), **keys})


def test_targets_are_fewer_than_tokens(trained):
    joined = trained.with_keys({"data.document_mask": False, "run.output_dir": str(trained.folder / "joined")})
    joined.must_run()
    for mine, theirs in zip(trained.metrics(), joined.metrics(), strict=True):
        assert mine["targets"] < theirs["targets"] and mine["lm_loss"] != theirs["lm_loss"]


@pytest.mark.parametrize("ranks, keys", [
    (2, {"data.micro_batch_size": ROWS // 2, "parallel.expert_parallel_degree": 2}),
    (2, {"data.micro_batch_size": ROWS // 2, "parallel.hybrid_shard_degree": 1}),
    (4, {"data.micro_batch_size": 1, "parallel.expert_parallel_degree": 2}),
], ids=["2 ranks, experts", "2 ranks, replicas", "4 ranks"])
def test_another_layout_gives_the_same_curve(trained, ranks, keys, tmp_path):
    job = variant(trained, tmp_path, keys)
    job.must_run(ranks)
    for mine, theirs in zip(numbers(job), numbers(trained), strict=True):
        assert mine == pytest.approx(theirs, rel=TOLERANCE)
    assert job.metrics()[-1]["validation_loss"] == pytest.approx(trained.metrics()[-1]["validation_loss"], rel=TOLERANCE)


@pytest.mark.parametrize("keys", [{"memory.activation_checkpointing": "full", "memory.activation_offloading": True},
                                  {"memory.activation_checkpointing": "selective"}], ids=["full, offloaded", "selective"])
def test_recomputation_changes_no_bit(trained, keys, tmp_path):
    job = variant(trained, tmp_path, keys)
    job.must_run()
    assert numbers(job) == numbers(trained)


def test_a_resumed_run_has_the_same_bits(trained, tmp_path):
    job = variant(trained, tmp_path, {"checkpoint.resume": str(trained.output / "checkpoints" / f"step-{STEPS // 2:08d}")})
    job.must_run()
    assert numbers(job) == numbers(trained)[STEPS // 2 :]


def test_a_run_does_not_change_its_mind(trained, tmp_path):
    job = variant(trained, tmp_path, {"data.document_mask": False, "run.steps": STEPS + 1,
                                      "checkpoint.resume": str(trained.output / "checkpoints" / f"step-{STEPS:08d}")})
    refused = job.run()
    assert refused.codes == [2] and "data.document_mask" in refused.text


def test_the_plan_takes_documents_as_the_data_has_them(trained):
    arguments = ["--world", 1, "--device", "cpu"]
    assert "documents of 4 tokens" in trained.must_run(1, "plan", [*arguments, "--document-tokens", 4]).text
    assert "tokens, of which none sees another" in trained.must_run(1, "plan", arguments).text
    elsewhere = trained.with_keys({"data.train": "nowhere", "data.validation": None, "validation.every": 0})
    assert "documents of 16 tokens" in elsewhere.must_run(1, "plan", arguments).text
    assert "cannot be read" in elsewhere.must_run(1, "plan", arguments).text
    for key, value, said in [("data.document_mask", False, "documents see each other"), ("data.sequence_length", 3, "Use at most 3")]:
        refused = trained.with_keys({key: value}).run(1, "plan", [*arguments, "--document-tokens", 4])
        assert refused.codes == [2] and said in refused.text

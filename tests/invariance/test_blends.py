"""Blends and several validation sets: which samples a step is of, whatever changes on the way, and what is refused.

Oracle: with a learning rate that moves no weight, a run of one source alone, one sample a step, says the loss of each of its samples in their order;
the sources of a blend have the same, and a blend's steps are means of them.
"""

import json

import numpy as np
import pytest
from conclave.report.charts import set_losses_chart
from conclave.report.run import read_run
from small_job import SmallJob, random_documents, write_tokens

STILL = {"optimizer.lr": 1e-30, "optimizer.weight_decay": 0, "moe.moe_load_balancing": "none", "data.micro_batch_size": 1, "checkpoint.every": 1000,
         "checkpoint.keep": 100}
TOLERANCE = 1e-6  # means of fp32 losses, summed in another order
SOURCES = {"first": 0.6, "second": 0.1, "third": 0.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blends")
    for number, name in enumerate(SOURCES):
        job = SmallJob(folder, {**STILL, "run.output_dir": str(folder / f"alone-{name}"), "data.train": str(folder / name), "run.steps": 40})
        write_tokens(folder / name, [np.concatenate(random_documents(seed=number, count=2 + number))])
        job.must_run()
    return folder


def blend_of(folder, weights=SOURCES):
    return [{"path": str(folder / name), "weight": weight, "name": f"the-{name}"} for name, weight in weights.items()]


def blended(folder, name, **keys):
    return SmallJob(folder, {**STILL, "run.output_dir": str(folder / name), "data.train": blend_of(folder), **{key.replace("__", "."): value for key, value in keys.items()}})


class Reading:
    """Checks records against the sources' losses, one sample after the other."""

    def __init__(self, folder):
        self.losses = {name: [json.loads(line)["lm_loss"] for line in (folder / f"alone-{name}/metrics.jsonl").read_text().splitlines()] for name in SOURCES}
        self.counts = dict.fromkeys(SOURCES, 0)

    def check(self, record, sequences):
        losses = []
        for name in SOURCES:
            targets = record[f"source/the-{name}/targets"]
            own = self.losses[name][self.counts[name] : self.counts[name] + targets // 16]
            self.counts[name] += targets // 16
            losses += own
            assert record[f"source/the-{name}/tokens"] == 16 * self.counts[name]
            assert record[f"source/the-{name}/loss"] == (pytest.approx(np.mean(own), rel=TOLERANCE) if own else None)
        assert len(losses) == sequences and record["targets"] == 16 * sequences
        assert record["lm_loss"] == pytest.approx(np.mean(losses), rel=TOLERANCE)
        read = sum(self.counts.values())
        assert all(abs(self.counts[name] - weight * read) < 1 + 1e-9 for name, weight in SOURCES.items())


def test_a_blend_goes_on_exactly_at_another_layout_and_batch_size(folder):
    reading, steps, done = Reading(folder), 0, 0
    for sequences, ranks, more in [(3, 1, 4), (4, 2, 3), (1, 1, 2), (6, 2, 3)]:
        steps += more
        job = blended(folder, "resumed", run__steps=steps, data__global_batch_size=sequences, checkpoint__allow_changed="data.global_batch_size")
        ended = job.must_run(ranks)
        assert "data.train the-first" in ended.text and "60 % of the samples" in ended.text and "epochs" in ended.text
        for record in job.metrics()[done:]:
            reading.check(record, sequences)
        done = steps


def test_another_blend_is_another_run(folder):
    job = blended(folder, "changed", run__steps=3)
    job.must_run()
    other = job.with_keys({"data.train": blend_of(folder, {"first": 0.5, "second": 0.2, "third": 0.3}), "run.steps": 5})
    refused = other.run()
    assert refused.codes == [2] and "data.train is" in refused.text and "fingerprint" in refused.text
    allowed = other.must_run(arguments=["--set", "checkpoint.allow_changed=data.train"])
    assert "read from its beginning" in allowed.text and other.metrics()[-1]["source/the-first/tokens"] == 16
    moved = [{**source, "name": f"renamed-{number}"} for number, source in enumerate(blend_of(folder))]
    renamed = blended(folder, "renamed", run__steps=2)
    renamed.must_run()
    renamed.with_keys({"data.train": moved, "run.steps": 3}).must_run()  # names are no part of what a run is


def test_the_resolved_job_reads_back(folder):
    job = blended(folder, "resolved", run__steps=1, data__validation={"a": str(folder / "first"), "b": str(folder / "second")})
    job.must_run()
    resolved = (job.output / "job.yaml").read_text()
    assert 'weight: 0.6, name: "the-first"}' in resolved and '"a": "' in resolved
    done = job.must_run(command="validate")
    assert "OK" in done.text
    assert "memory" in job.must_run(command="plan").text


def test_validation_sets_have_names(folder):
    names = {"a": str(folder / "first"), "b": str(folder / "third")}
    alone = {}
    for name, prefix in names.items():
        job = blended(folder, f"validated-{name}", run__steps=1, data__validation=prefix, validation__every=1, validation__samples=5)
        job.must_run()
        alone[name] = job.metrics()[-1]["validation_loss"]
        assert not [key for key in job.metrics()[-1] if key.startswith("validation/")]
    job = blended(folder, "validated-both", run__steps=1, data__validation=names, validation__every=1, validation__samples=5)
    ended = job.must_run(2)
    record = job.metrics()[-1]
    for name in names:
        assert record[f"validation/{name}/loss"] == pytest.approx(alone[name], rel=TOLERANCE) and record[f"validation/{name}/targets"] == 80
        assert f" of {name} over the first 5 of " in ended.text
    assert record["validation_loss"] == pytest.approx(np.mean(list(alone.values())), rel=TOLERANCE) and record["validation_samples"] == 10
    assert set_losses_chart(read_run(job.output)) is not None and set_losses_chart(read_run(folder / "alone-first")) is None
    said = json.loads(job.must_run(command="eval", arguments=["--json"]).outputs[0].splitlines()[-1])
    assert set(said) == {"a", "b"} and said["a"]["samples"] == 25 - 1


@pytest.mark.parametrize("command", ["validate", "train"])
@pytest.mark.parametrize("key", ["data.train", "data.validation"])
def test_every_set_is_looked_at(command, key, folder):
    """The last of several is damaged: its mask is of other tokens."""
    tokens = np.concatenate(random_documents(seed=9, count=2))
    write_tokens(folder / "other", [tokens[::-1].copy()], mask=np.ones(len(tokens)))
    mask = (folder / "other.mask").read_bytes()
    write_tokens(folder / "damaged", [tokens], mask=np.ones(len(tokens)))
    (folder / "damaged.mask").write_bytes(mask)
    sets = [str(folder / "first"), str(folder / "damaged")]
    refused = blended(folder, "damaged-run", **{key.replace(".", "__"): sets}).run(command=command)
    assert refused.codes == [2] and "damaged.mask, byte 32" in refused.text and "of other files" in refused.text
    assert "Traceback" not in refused.text


def test_a_validation_without_a_target_is_refused(folder):
    mask = np.zeros(400, np.uint8)
    mask[300] = 1
    write_tokens(folder / "late", [np.concatenate(random_documents(seed=3, count=2))], mask=mask)
    job = blended(folder, "late-run", data__validation=str(folder / "late"), validation__every=1, validation__samples=4)
    refused = job.run(2)
    assert set(refused.codes) == {2} and "have no token that the loss is of" in refused.text

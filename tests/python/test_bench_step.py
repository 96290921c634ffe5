"""`conclave bench step`: the phases of a step add up to it, belong to the units that have them, and nothing of the run is kept.

Oracle: arithmetic on what it prints, and the layout: where a degree is 1, nothing travels on that axis. No time is compared with another machine's.
"""

import json

import pytest
from small_job import MODEL, SmallJob

UNITS = ["embedding", "layers.0", "layers.1", "head"]


def profile_of(folder, ranks, **keys):
    job = SmallJob(folder, {"data.sequence_length": 64, "data.micro_batch_size": 4, **{key.replace("__", "."): value for key, value in keys.items()}})
    (folder / "config.json").write_text(json.dumps({**MODEL, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32}))
    ended = job.must_run(ranks, "bench step", ["--steps", 5, "--json"])
    assert not job.output.exists() or not any(job.output.iterdir()), "a benchmark writes nothing"
    return json.loads(ended.outputs[0])


@pytest.mark.parametrize("expert, shard", [(2, 0), (1, 0), (2, 1), (1, 1)])
def test_phases_add_up_and_follow_the_layout(expert, shard, tmp_path):
    profile = profile_of(tmp_path, 2, parallel__expert_parallel_degree=expert, parallel__hybrid_shard_degree=shard)
    assert list(profile["units"]) == UNITS
    assert 0 <= profile["unattributed_seconds"] < 0.03 * profile["step_seconds"]
    assert profile["lowest_step_seconds"] <= profile["step_seconds"] <= profile["highest_step_seconds"]
    for unit in profile["units"].values():
        assert unit["computing"] > 0
        assert unit["optimizer"] == unit["data"] == unit["offload"] == 0
    assert profile["whole_step"]["optimizer"] > 0 and profile["whole_step"]["gather"] == 0
    for phase, travels in (("gather", shard != 1), ("dispatch", expert == 2), ("reduce", True)):
        assert (profile["total"][f"{phase}_in_flight"] > 0) == travels, phase
        assert (profile["overlapped"][phase] is not None) == travels, phase
        if travels:
            assert 0 <= profile["overlapped"][phase] <= 1
    assert (profile["total"]["dispatch"] > 0) == (expert == 2)


def test_offloading_shows_where_it_waits(tmp_path):
    profile = profile_of(tmp_path, 1, memory__activation_checkpointing="full", memory__activation_offloading=True,
                         memory__activation_loading_horizon=1)
    # With a horizon of 1 the one input that leaves is waited for, both ways.
    assert profile["units"]["layers.0"]["offload"] > 0 or profile["units"]["layers.1"]["offload"] > 0
    assert profile["total"]["dispatch"] == 0


def test_the_table_has_a_row_for_each_unit(tmp_path):
    job = SmallJob(tmp_path)
    text = job.must_run(2, "bench step", ["--steps", 2]).outputs[0]
    for row in (*UNITS, "whole step", "total"):
        assert any(line.startswith(row) for line in text.splitlines()), text
    assert "in no phase" in text and "behind computation" in text

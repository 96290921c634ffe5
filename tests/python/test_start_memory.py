"""No rank ever holds more than its shards and one unsharded unit when a run starts, from random weights or a Hugging Face checkpoint. (What an export
takes is in test_ckpt.py.)

Oracle: the kernel's count of resident memory at its peak, which the program reads after the start (of the rank with the most), against the sizes of
the parameters by arithmetic, above the same program's with next to no parameters.
"""

import json
import re

import pytest
from small_job import MODEL, SmallJob

MEBIBYTE = 2**20
LARGE = {**MODEL, "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 10, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 32}
# Headers, file buffers (a block of a checkpoint is 4 MiB) and what the allocators keep beside tensors.
FIXED = 12 * MEBIBYTE


def unit_parameters(model):
    """Of the embedding, a decoder layer and the head."""
    hidden, experts = model["hidden_size"], model["num_local_experts"]
    query, key = model["num_attention_heads"] * model["head_dim"], model["num_key_value_heads"] * model["head_dim"]
    layer = 2 * hidden + hidden * (2 * query + 2 * key) + experts * hidden + 3 * experts * hidden * model["intermediate_size"]
    return model["vocab_size"] * hidden, layer, model["vocab_size"] * hidden + hidden


def shard_parameters(model, ranks):
    embedding, layer, head = unit_parameters(model)
    return (embedding + model["num_hidden_layers"] * layer + head) / ranks


def job_of(folder, model, ranks, expert, **keys):
    folder.mkdir(exist_ok=True)
    job = SmallJob(folder, {"run.steps": 1, "checkpoint.every": 1, "parallel.expert_parallel_degree": expert, "data.micro_batch_size": 1,
                            **{key.replace("__", "."): str(value) for key, value in keys.items()}})
    (folder / "config.json").write_text(json.dumps(model))
    return job


def most_held(text):
    return float(re.search(r"peak memory per rank so far: ([0-9.]+) MiB", text).group(1)) * MEBIBYTE


def held_by(job, ranks):
    return most_held(job.must_run(ranks).errors[0])


@pytest.mark.parametrize("ranks, expert", [(4, 2)])
def test_a_rank_holds_its_shards_and_one_unit(ranks, expert, tmp_path):
    small = {**LARGE, "hidden_size": 32, "intermediate_size": 16, "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    empty = job_of(tmp_path / "empty", small, ranks, expert)
    job = job_of(tmp_path / "large", LARGE, ranks, expert)
    shard = shard_parameters(LARGE, ranks)
    unit = 4 * max(unit_parameters(LARGE))
    whole = 4 * ranks * shard
    assert whole > 3 * (unit + FIXED)  # or a model held whole would not be seen

    # Parameters, two moments and the gradient's shard.
    held = held_by(job, ranks) - held_by(empty, ranks)
    assert 0.9 * 16 * shard < held < 16 * shard + unit + FIXED
    # Of a Hugging Face checkpoint.
    loading = job_of(tmp_path / "loaded", LARGE, ranks, expert, model__init_from=job.must_export(tmp_path / "weights"))
    loading_empty = job_of(tmp_path / "loaded_empty", small, ranks, expert, model__init_from=empty.must_export(tmp_path / "no_weights"))
    loaded = held_by(loading, ranks) - held_by(loading_empty, ranks)
    assert 0.9 * 16 * shard < loaded < 16 * shard + unit + FIXED
    print(f"MiB above an empty model: started {held / MEBIBYTE:.1f}, loaded {loaded / MEBIBYTE:.1f} (state {16 * shard / MEBIBYTE:.1f}, "
          f"unit {unit / MEBIBYTE:.1f})")

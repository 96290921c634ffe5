"""What a program computes, to the bit: jobs of every kind, their losses, gradient norms and the hashes of their checkpoints.

    python tests/invariance/bits.py PROGRAM FILE.json                write what this program gives
    python tests/invariance/bits.py PROGRAM FILE.json --compare      compare with what another one gave; exit code 1 where a bit differs

Numbers differ between processors, so a file is of use on the machine where it was written: for a change that must not change a result.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

QUICKSTART = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
              "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256}
FULL, SELECTIVE = ({"memory.activation_checkpointing": kind} for kind in ("full", "selective"))
BF16 = {"precision.compute": "bf16"}
SPILL = {"moe.overload": "spill", "moe.spill_least_rows": 1}
CHUNK = {"moe.overload": "chunk", "moe.max_tokens_per_rank_factor": 1.0}

# name: (ranks, expert degree, shard degree, keys, changes of the model)
CASES = {
    "alone": (1, 1, 0, {}, {}),
    "alone_quickstart": (1, 1, 0, {"data.sequence_length": 256, "data.micro_batch_size": 4, **SPILL}, QUICKSTART),
    "alone_bf16": (1, 1, 0, BF16, QUICKSTART),
    "alone_tied": (1, 1, 0, {}, {"tie_word_embeddings": True}),
    "alone_jitter": (1, 1, 0, {"moe.router_jitter_noise": 0.1, **FULL}, {}),
    "alone_sinkhorn": (1, 1, 0, {"moe.moe_load_balancing": "sinkhorn"}, {}),
    "alone_capacity": (1, 1, 0, {"moe.capacity_factor": 1.0}, {}),
    "quickstart": (2, 2, 0, {"data.sequence_length": 256, "data.micro_batch_size": 4, **SPILL}, QUICKSTART),
    "bias": (2, 2, 0, {"moe.moe_load_balancing": "bias", "moe.bias_update_rate": 0.02}, {}),
    "balanced": (2, 2, 0, {"moe.moe_load_balancing": "balanced", "moe.moe_z_loss_coeff": 0.01}, {}),
    "sinkhorn": (2, 2, 0, {"moe.moe_load_balancing": "sinkhorn"}, {}),
    "none_of_the_rules": (2, 1, 0, {"moe.moe_load_balancing": "none"}, {}),
    "aux_loss_of_ranks": (2, 2, 1, {"moe.aux_loss_scope": "rank", "moe.aux_loss_layers": "each"}, {}),
    "capacity_by_probability": (2, 2, 0, {"moe.capacity_factor": 1.0}, {}),
    "capacity_by_position": (2, 2, 0, {"moe.capacity_factor": 1.0, "moe.drop_policy": "position"}, {}),
    "all_gather": (2, 2, 0, {"moe.dispatcher": "all_gather"}, {}),
    "shuffle": (2, 2, 0, {"moe.global_token_shuffle": True}, {}),
    "shuffle_all_gather": (2, 2, 0, {"moe.global_token_shuffle": True, "moe.dispatcher": "all_gather"}, {}),
    "spill": (4, 2, 0, SPILL, {}),
    "spill_full": (2, 2, 0, {**SPILL, **FULL}, {}),
    "chunk": (4, 4, 1, CHUNK, {}),
    "chunk_selective": (2, 2, 0, {**CHUNK, **SELECTIVE}, {}),
    "three_parts": (2, 2, 0, {"moe.dispatch_chunks": 3}, {}),
    "three_parts_full": (2, 2, 0, {"moe.dispatch_chunks": 3, **FULL}, {}),
    "selective": (2, 2, 0, SELECTIVE, {}),
    "full": (2, 1, 0, FULL, {}),
    "full_offload": (2, 2, 0, {**FULL, "memory.activation_offloading": True, "memory.activation_loading_horizon": 1}, {}),
    "kept_gathered": (2, 2, 0, {"parallel.reshard_after_forward": False, "parallel.prefetch_units": 3}, {}),
    "tied": (2, 2, 0, {}, {"tie_word_embeddings": True}),
    "bf16": (2, 2, 0, BF16, QUICKSTART),
    "bf16_replicated_selective": (2, 1, 1, {**BF16, **SELECTIVE}, QUICKSTART),
    "bf16_reduced_in_bf16": (2, 2, 0, {**BF16, "precision.reduce": "bf16", "data.global_batch_size": 8}, QUICKSTART),
    "micro_steps": (2, 2, 0, {"data.global_batch_size": 12}, {}),
    "four_ranks": (4, 1, 0, {}, {}),
    "hybrid": (4, 2, 2, {"data.global_batch_size": 16}, {}),
    "hybrid_expert": (4, 2, 1, {}, {}),
    "replicated": (4, 1, 1, {}, {}),
}


def checkpoint_hash(output):
    """Of every byte of every tensor."""
    (folder,) = sorted((output / "checkpoints").glob("step-*"))[-1:]
    hashes = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                hashes[name] = hashlib.sha256(tensors.get_tensor(name).flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
    assert hashes
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def bits_of(name):
    from small_job import MODEL, SmallJob

    ranks, expert, shard, keys, model = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job").mkdir()
        job = SmallJob(Path(folder) / "job", {"run.steps": 4, "parallel.expert_parallel_degree": expert, "parallel.hybrid_shard_degree": shard,
                                              "checkpoint.every": 4, "checkpoint.async": False, **keys})
        (job.folder / "config.json").write_text(json.dumps({**MODEL, "initializer_range": 0.1, **model}))
        job.must_run(ranks)
        records = [[record[key] for key in ("step", "loss", "lm_loss", "aux_loss", "z_loss", "grad_norm", "drop_rate", "expert_imbalance")]
                   for record in job.metrics()]
        return {"steps": records, "checkpoint": checkpoint_hash(job.output)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("file", type=Path)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--only", help="cases whose name contains this text")
    options = parser.parse_args()
    os.environ["CONCLAVE_PROGRAM"] = options.program
    bits = {name: bits_of(name) for name in CASES if not options.only or options.only in name}
    if not options.compare:
        options.file.write_text(json.dumps(bits, indent=1) + "\n")
        return 0
    expected = json.loads(options.file.read_text())
    different = [name for name in bits if bits[name] != expected[name]]
    print(f"{len(bits)} jobs, {len(different)} different: {', '.join(different)}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())

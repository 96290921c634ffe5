"""Pre-trains a small Mixtral of Transformers with expert parallelism under PyTorch's FSDP2, on real text.

    torchrun --nproc-per-node 2 examples/python/pretrain.py --steps 20

The lines that Conclave adds to such a script: init, transform, fully_shard, materialize, and its own clip_grad_norm_ and save_pretrained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from text import batch_of, read_text
from transformers import MixtralConfig, MixtralForCausalLM

import conclave


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--expert-parallel-degree", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/python-pretrain"), help="the Hugging Face folder that is written at the end")
    options = parser.parse_args(arguments)

    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    conclave.init({"expert_parallel_degree": options.expert_parallel_degree})
    config = MixtralConfig(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                           num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=256, output_router_logits=True)
    with torch.device("meta"):
        model = MixtralForCausalLM(config)
    conclave.transform(model, conclave.MoEConfig(moe_load_balancing="aux_loss", moe_aux_loss_coeff=0.02))
    conclave.fully_shard(model)
    conclave.materialize(model, seed=1)
    optimizer = torch.optim.AdamW(conclave.parameter_groups(model, weight_decay=0.1), lr=3e-3, betas=(0.9, 0.95))

    text, losses = read_text(), []
    for step in range(options.steps):
        tokens = batch_of(text, step, rank, ranks, sequences=4, length=128)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        norm = conclave.clip_grad_norm_(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / ranks)
        load = conclave.load_metrics(model)
        if rank == 0:
            print(f"step {step + 1}: loss {losses[-1]:.3f}, gradient norm {norm.item():.2f}, expert imbalance {load['expert_imbalance']:.2f}", flush=True)
    conclave.save_pretrained(model, options.output)
    dist.destroy_process_group()
    return losses


if __name__ == "__main__":
    main()

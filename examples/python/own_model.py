"""A model of one's own with conclave.nn.MoE layers, sharded by PyTorch's fully_shard by hand.

    torchrun --nproc-per-node 2 examples/python/own_model.py --steps 20
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F
from text import batch_of, read_text
from torch import nn
from torch.distributed.fsdp import fully_shard

import conclave

EXPERTS, CHOICES = 8, 2


class Block(nn.Module):
    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.attention_norm, self.moe_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query_key_value, self.output = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.moe = conclave.nn.MoE(width, 2 * width, EXPERTS, CHOICES, name=f"block.{number}.moe")

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.query_key_value(self.attention_norm(hidden)).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.output(attended.transpose(1, 2).flatten(2))
        out, logits = self.moe(self.moe_norm(hidden))
        return hidden + out, logits


class Model(nn.Module):
    def __init__(self, width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(256, width), nn.Linear(width, 256, bias=False)
        self.blocks = nn.ModuleList(Block(width, number) for number in range(blocks))

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B,S] -> (logits [B,S,256], balancing loss after Fedus et al., 2022, equation 4: 1 for even routing and one choice)."""
        hidden, balance = self.embedding(tokens), 0.0
        for block in self.blocks:
            hidden, logits = block(hidden)
            probability = F.softmax(logits, dim=-1)
            share = F.one_hot(probability.topk(CHOICES).indices, EXPERTS).float().mean(dim=(0, 1))
            balance = balance + EXPERTS * share.dot(probability.mean(dim=0)) / len(self.blocks)
        return self.head(hidden), balance


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--expert-parallel-degree", type=int, default=2)
    options = parser.parse_args(arguments)

    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mesh = conclave.init({"expert_parallel_degree": options.expert_parallel_degree})
    torch.manual_seed(1)  # what is not the experts' is the same on every rank
    model = Model()
    for block in model.blocks:
        fully_shard(block.moe.experts, mesh=mesh.expert_data)  # the experts first, on the ranks that hold the same ones
        fully_shard(block, mesh=mesh.dense_data)
    fully_shard(model, mesh=mesh.dense_data)
    optimizer = torch.optim.AdamW(conclave.parameter_groups(model, weight_decay=0.1), lr=3e-3, betas=(0.9, 0.95))

    text, losses = read_text(), []
    for step in range(options.steps):
        tokens = batch_of(text, step, rank, ranks, sequences=4, length=129)
        logits, balance = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        (loss + 0.02 * balance).backward()
        conclave.clip_grad_norm_(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / ranks)
        if rank == 0:
            print(f"step {step + 1}: loss {losses[-1]:.3f}", flush=True)
    dist.destroy_process_group()
    return losses


if __name__ == "__main__":
    main()

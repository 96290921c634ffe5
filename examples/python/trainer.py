"""Trains a small Mixtral with the Trainer of Transformers, its experts divided among the ranks.

    torchrun --nproc-per-node 2 examples/python/trainer.py --steps 20

A script with the stock Trainer changes in three lines: init, transform, and conclave.Trainer instead of transformers.Trainer. Start it again with
--resume, also with another --expert-parallel-degree.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from text import read_text
from transformers import MixtralConfig, MixtralForCausalLM, TrainingArguments

import conclave

LENGTH = 64


class Stretches(torch.utils.data.Dataset):
    """Consecutive stretches of the text."""

    def __init__(self, text: torch.Tensor) -> None:
        self._text = text

    def __len__(self) -> int:
        return len(self._text) // LENGTH

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        tokens = self._text[number * LENGTH : (number + 1) * LENGTH]
        return {"input_ids": tokens, "labels": tokens}


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--expert-parallel-degree", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/python-trainer"))
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    options = parser.parse_args(arguments)

    dist.init_process_group("gloo")
    torch.manual_seed(1)  # every rank builds the same model
    model = MixtralForCausalLM(MixtralConfig(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                                             num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=256))
    conclave.init({"expert_parallel_degree": options.expert_parallel_degree})
    conclave.transform(model, conclave.MoEConfig(moe_load_balancing="aux_loss", moe_aux_loss_coeff=0.02))
    settings = TrainingArguments(output_dir=str(options.output), max_steps=options.steps, per_device_train_batch_size=8, learning_rate=3e-3,
                                 gradient_accumulation_steps=2, max_grad_norm=1.0, logging_steps=1, save_steps=max(1, options.steps // 2),
                                 report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = conclave.Trainer(model=model, args=settings, train_dataset=Stretches(read_text()))
    trainer.train(resume_from_checkpoint=options.resume or None)
    trainer.save_model(str(options.output / "model"))
    log = [line for line in trainer.state.log_history if "loss" in line]
    dist.destroy_process_group()
    return log


if __name__ == "__main__":
    main()

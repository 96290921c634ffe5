"""Small random Mixtral checkpoints made by Transformers, and their tensors under the names on disk."""

from pathlib import Path

import torch
from transformers import MixtralConfig, MixtralForCausalLM

BASE = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 128, "router_aux_loss_coef": 0.02, "rope_theta": 10000.0,
        "output_router_logits": True,
        # Ten times the usual: logits and routing are then far from flat, and a wrong path shows.
        "initializer_range": 0.2}


def make_model(seed: int = 0, **changes: object) -> MixtralForCausalLM:
    torch.manual_seed(seed)
    config = MixtralConfig(**(BASE | changes))
    config._experts_implementation = "eager"  # a plain loop over experts; the others want sizes that are multiples of 16 bytes
    model = MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones otherwise: a norm weight that is ignored would not show
                parameter.uniform_(0.5, 1.5)
    return model


def save_model(model: MixtralForCausalLM, folder: Path, **options: object) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def by_disk_name(model: MixtralForCausalLM, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters (or their gradients) of Transformers 5, split as they are on disk: a tensor per expert and projection."""
    half = model.config.intermediate_size
    disk = {}
    for name, tensor in tensors.items():
        stem = name.replace(".mlp.", ".block_sparse_moe.")
        if name.endswith("experts.gate_up_proj"):
            for expert, rows in enumerate(tensor):
                disk[stem.replace("gate_up_proj", f"{expert}.w1.weight")] = rows[:half]
                disk[stem.replace("gate_up_proj", f"{expert}.w3.weight")] = rows[half:]
        elif name.endswith("experts.down_proj"):
            for expert, rows in enumerate(tensor):
                disk[stem.replace("down_proj", f"{expert}.w2.weight")] = rows
        else:
            disk[stem] = tensor
    return disk

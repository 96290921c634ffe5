"""What a parameter is called, and where it lies, in the program's own checkpoints: Mixtral's as `conclave train` has them, other models' by their own names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from conclave.regions import stored_tensors

_WHOLE = {"input_layernorm.weight": "input_norm", "self_attn.o_proj.weight": "attention.output", "post_attention_layernorm.weight": "post_attention_norm",
          "mlp.gate.weight": "router", "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down"}
_PARTS_OF_QKV = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")


@dataclass(frozen=True)
class Place:
    """A parameter as rows `begin ...` of the program's tensor of `shape`."""

    name: str
    shape: tuple[int, ...]
    begin: int = 0  # the first of its elements


def places_of(model: nn.Module) -> dict[str, Place]:
    """By the model's own names."""
    tensors = stored_tensors(model)
    if getattr(getattr(model, "config", None), "model_type", None) != "mixtral" or "model.embed_tokens.weight" not in tensors:
        return {name: Place(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return {name: _place_in_mixtral(name, tensors) for name in tensors}


def _place_in_mixtral(name: str, tensors: dict[str, torch.Tensor]) -> Place:
    shape = tuple(tensors[name].shape)
    _, _, inner = name.partition("layers.")
    if not inner:
        return Place(name.removeprefix("model.").removesuffix(".weight"), shape)
    layer, _, part = inner.partition(".")
    if part in _WHOLE:
        return Place(f"layers.{layer}.{_WHOLE[part]}", shape)
    rows = [tensors[f"model.layers.{layer}.{each}"].shape[0] for each in _PARTS_OF_QKV]
    before = sum(rows[: _PARTS_OF_QKV.index(part)])
    return Place(f"layers.{layer}.attention.qkv", (sum(rows), shape[1]), before * shape[1])

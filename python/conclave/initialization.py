"""Delayed initialization: a model on the meta device gets this rank's parts of its parameters, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from conclave._library import operators
from conclave.errors import NotMaterializedError, OrderError, UnsupportedModelError
from conclave.regions import Region, local_of
from conclave.transformation import transformed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def materialize(model: PreTrainedModel, *, seed: int | None = None) -> PreTrainedModel:
    """Gives a transformed model on the meta device memory for this rank's parts, and random weights. To be called after `fully_shard`, if at all.

    Each weight is a function of (seed, its parameter's name, its place): every layout of any number of ranks starts from the same weights, no rank
    ever holds the model, and ranks need not talk. Matrices are normal with the model's `initializer_range`, norms 1, biases 0. `seed`: None: the
    mesh's.

    Raises:
        OrderError: the model is not transformed, or not on the meta device.
        UnsupportedModelError: the model ties weights, which meta tensors cannot show.
        NotMaterializedError: something is still on the meta device afterwards.
    """
    state = transformed(model, "conclave.materialize")
    allocate(model)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            _fill(module, f"{prefix}.{name}".lstrip("."), parameter, model.config.initializer_range, state.mesh.seed if seed is None else seed)
    check_materialized(model)
    return model


def allocate(model: PreTrainedModel) -> None:
    """Memory for this rank's parts, with undefined values; buffers are computed as Transformers does."""
    real = [name for name, parameter in model.named_parameters() if not parameter.is_meta]
    if real:
        raise OrderError(f"{real[0]} is not on the meta device, and its values would be lost.\n"
                         "Build the model under `with torch.device('meta')`, or leave the call out.")
    if model.config.tie_word_embeddings:
        raise UnsupportedModelError("the model ties its embedding to its head, which delayed initialization would separate.\n"
                                    "Set config.tie_word_embeddings to False, or build the model on a real device.")
    state = transformed(model, "conclave.materialize")
    model.to_empty(device=state.mesh.device_type)
    with torch.no_grad():
        for module in model.modules():
            if list(module.buffers(recurse=False)):
                model._init_weights(module)


def check_materialized(model: nn.Module) -> None:
    """Refuses a model with a parameter or buffer on the meta device, naming each."""
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise NotMaterializedError(f"{len(left)} tensors are still on the meta device: {', '.join(left[:8])}{', ...' if len(left) > 8 else ''}.\n"
                                   "Call conclave.load_pretrained(model, folder) or conclave.materialize(model).")


@torch.no_grad()
def _fill(module: nn.Module, name: str, parameter: nn.Parameter, std: float, seed: int) -> None:
    local = local_of(parameter)
    if "Norm" in type(module).__name__:
        local.fill_(1.0)
        return
    if name.endswith("bias"):
        local.fill_(0.0)
        return
    region = Region.of(parameter)
    parts = [operators().initial_values(name, seed, begin, count, std) for begin, count in region.runs(tuple(parameter.shape))]
    if parts:
        local.copy_(torch.cat(parts).view(region.size))
    if isinstance(module, nn.Embedding) and module.padding_idx is not None and region.offset[0] <= module.padding_idx < region.offset[0] + region.size[0]:
        local[module.padding_idx - region.offset[0]].fill_(0.0)

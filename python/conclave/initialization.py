"""Delayed initialization: a model on the meta device gets this rank's parts of its parameters, and nothing else."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

import torch
from torch import nn

from conclave._library import operators
from conclave.adapters import is_adapted
from conclave.errors import NotMaterializedError, OrderError
from conclave.regions import Region, local_of
from conclave.selection_bias import is_selection_bias
from conclave.transformed_model import transformed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_RANGE = 0.02  # of a model whose configuration names none


def materialize(model: PreTrainedModel, *, seed: int | None = None) -> PreTrainedModel:
    """Gives a transformed model on the meta device memory for this rank's parts, and random weights. To be called after `fully_shard`, if at all.

    Each weight is a function of (seed, its parameter's name, its place): every layout of any number of ranks starts from the same weights, no rank
    ever holds the model, and ranks need not talk. Matrices are normal with the model's `initializer_range`, norms 1, biases 0. `seed`: None: the
    mesh's.

    Raises:
        OrderError: the model is not transformed, or not on the meta device, or holds adapters of PEFT.
        NotMaterializedError: something is still on the meta device afterwards.
    """
    state = transformed(model, "conclave.materialize")
    if is_adapted(model):
        raise OrderError("the model holds adapters of PEFT, whose first values are PEFT's to draw.\nCall conclave.materialize before get_peft_model.")
    allocate(model)
    for name, _ in model.named_parameters():  # a tied one once, under its first name
        fill(model, name, state.mesh.seed if seed is None else seed)
    check_materialized(model)
    return model


def allocate(model: PreTrainedModel, stored: Container[str] = ()) -> None:
    """Memory for this rank's parts, with undefined values; tied weights stay tied. Buffers that have values keep them (as accelerate's init_empty_weights
    leaves them); those on the meta device are computed as Transformers does.

    `stored`: buffers that the caller will fill.

    Raises:
        OrderError: a parameter has values, which would be lost.
        NotMaterializedError: names the buffers that nobody computes.
    """
    real = [name for name, parameter in model.named_parameters() if not parameter.is_meta]
    if real:
        raise OrderError(f"{real[0]} is not on the meta device, and its values would be lost.\n"
                         "Build the model under `with torch.device('meta')`, or leave the call out.")
    state = transformed(model, "conclave.materialize")
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((module, name))
    kept = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items() if buffer is not None and not buffer.is_meta]
    model.to_empty(device=state.mesh.device_type)
    for (first, name), *others in holders.values():
        for module, other in others:
            module._parameters[other] = first._parameters[name]
    for module, name, buffer in kept:
        module._buffers[name] = buffer.to(state.mesh.device_type)
    left = _compute_buffers(model, {(id(module), name) for module, name, _ in kept})
    if unknown := [name for name in left if name not in stored]:
        raise NotMaterializedError(f"{len(unknown)} buffers were on the meta device, and the model has no code that computes them: {', '.join(unknown[:8])}.\n"
                                   "Build the model by accelerate's init_empty_weights(), which gives buffers their values, or fill them after this call.")


@torch.no_grad()
def _compute_buffers(model: nn.Module, known: set[tuple[int, str]]) -> list[str]:
    """By the model's own `_init_weights`, where it has one; returns the names of those that it leaves as they are."""
    left = []
    for prefix, module in model.named_modules():
        wanted = {name: buffer for name, buffer in module._buffers.items() if buffer is not None and (id(module), name) not in known}
        for name in [name for name in wanted if is_selection_bias(name)]:
            wanted.pop(name).zero_()
        for buffer in wanted.values():
            buffer.fill_(_untouched(buffer))
        if wanted and hasattr(model, "_init_weights"):
            model._init_weights(module)
        for name in wanted:
            buffer = module._buffers[name]
            if buffer.dtype != torch.bool and buffer.numel() and bool((buffer.isnan() if buffer.is_floating_point() else buffer == _untouched(buffer)).all()):
                left.append(f"{prefix}.{name}" if prefix else name)
    return left


def _untouched(buffer: torch.Tensor) -> float | int | bool:
    """A value that no code gives a whole buffer."""
    if buffer.is_floating_point():
        return float("nan")
    return False if buffer.dtype == torch.bool else torch.iinfo(buffer.dtype).max


def check_materialized(model: nn.Module) -> None:
    """Refuses a model with a parameter or buffer on the meta device, naming each."""
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise NotMaterializedError(f"{len(left)} tensors are still on the meta device: {', '.join(left[:8])}{', ...' if len(left) > 8 else ''}.\n"
                                   "Call conclave.load_pretrained(model, folder) or conclave.materialize(model).")


@torch.no_grad()
def fill(model: PreTrainedModel, name: str, seed: int) -> None:
    """Draws this rank's part of the parameter `name`."""
    module, parameter = model.get_submodule(name.rpartition(".")[0]), model.get_parameter(name)
    std = getattr(getattr(model, "config", None), "initializer_range", DEFAULT_RANGE)
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

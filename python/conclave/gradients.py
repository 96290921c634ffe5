"""Gradients of a transformed model across its two meshes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from conclave._library import operators
from conclave.adamw import AdamW
from conclave.adapters import check_adapters, check_same_adapters
from conclave.errors import ConfigError, OrderError
from conclave.regions import local_of
from conclave.transformed_model import transformed

_BUCKET_BYTES = 64 << 20


def _copies(tensor: torch.Tensor, world: int) -> int:
    """The ranks that hold the same part of `tensor`."""
    if not isinstance(tensor, DTensor):
        return world
    parts = 1
    for axis, placement in enumerate(tensor.placements):
        parts *= 1 if placement.is_replicate() else tensor.device_mesh.size(axis)
    return world // parts


def clip_grad_norm_(model: nn.Module, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False,
                    optimizer: AdamW | None = None) -> torch.Tensor:
    """Scales the gradients so that the norm of the whole model's gradient is at most `max_norm`; returns the norm before, fp32. Collective.

    Right for parameters on any of the meshes, sharded or not, and for every `norm_type` from 0 (exclusive) to infinity. Powers are summed in double
    precision and over the ranks in rank order.

    `optimizer`: a conclave.AdamW of these parameters, which then scales the gradients as its next step reads them; `parameter.grad` stays as it is.

    Raises:
        OrderError: the model is not transformed.
        ConfigError: norm_type is not a positive number, or the optimizer is another one.
    """
    state = transformed(model, "conclave.clip_grad_norm_")
    check_adapters(model)
    norm_type = float(norm_type)
    if not norm_type > 0:
        raise ConfigError(f"norm_type is {norm_type}, and a norm takes a positive power.\nUse 2, 1, or math.inf for the largest element.")
    if optimizer is not None and not isinstance(optimizer, AdamW):
        raise ConfigError(f"the optimizer is a {type(optimizer).__name__}, which cannot scale gradients as it reads them.\n"
                          "Use conclave.AdamW, or leave the argument out.")
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    device = local_of(gradients[0]).device if gradients else torch.device(state.mesh.device_type)
    own = torch.zeros((), dtype=torch.float64, device=device)
    for gradient in gradients:
        local = local_of(gradient)
        if math.isinf(norm_type):
            own = torch.maximum(own, local.double().abs().amax()) if local.numel() else own
        else:
            own += _sum_of_powers(local, norm_type) / _copies(gradient, state.mesh.world_size)
    parts = [torch.empty_like(own) for _ in range(state.mesh.world_size)]
    dist.all_gather(parts, own)
    norm = torch.stack(parts).amax() if math.isinf(norm_type) else torch.stack(parts).sum().pow(1 / norm_type)
    if error_if_nonfinite and not torch.isfinite(norm):
        raise RuntimeError(f"the norm of the gradient is {norm.item()}, so it cannot be clipped")
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if optimizer is not None:
        optimizer.grad_scale_of_next_step = factor.item()
    elif device.type != "cpu" or factor.item() != 1:  # what a GPU has computed is not waited for
        for gradient in gradients:
            local = local_of(gradient)
            local.mul_(factor.to(local.dtype))
    return norm.float()


def _sum_of_powers(gradient: torch.Tensor, power: float) -> torch.Tensor:
    if power == 2 and gradient.device.type == "cpu" and gradient.dtype == torch.float32:
        return operators().sum_of_squares([gradient])  # reads the gradient once, and copies nothing
    return gradient.double().abs().pow(power).sum()


def synchronize_gradients(model: nn.Module) -> None:
    """Averages the gradients of a model that is transformed but not sharded, after backward: dense ones over all ranks, experts' over those that hold
    the same ones. Collective. With gradient accumulation, call it once, after the last backward.

    Raises:
        OrderError: the model is not transformed, or sharded (then backward has averaged already).
    """
    state = transformed(model, "conclave.synchronize_gradients")
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        raise OrderError("the model is sharded by fully_shard, whose backward averages gradients already.\nLeave out conclave.synchronize_gradients.")
    check_same_adapters(model)
    experts = state.expert_parameters()
    dense, expert = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:  # no token of this rank has reached it
                parameter.grad = torch.zeros_like(parameter)
            (expert if id(parameter) in experts else dense).append(local_of(parameter.grad))
    _average(dense, state.mesh.dense)
    _average(expert, state.mesh.expert_data)


def _average(gradients: list[torch.Tensor], mesh: DeviceMesh) -> None:
    if mesh.size() == 1:
        return
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        for axis in range(mesh.ndim):
            if mesh.size(axis) > 1:
                dist.all_reduce(flat, group=mesh.get_group(axis))
        flat /= mesh.size()
        for gradient, mean in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Lists of one dtype and of about _BUCKET_BYTES."""
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for gradient in gradients:
        bucket = by_dtype.setdefault(gradient.dtype, [])
        bucket.append(gradient)
        if sum(each.nbytes for each in bucket) >= _BUCKET_BYTES:
            yield by_dtype.pop(gradient.dtype)
    yield from by_dtype.values()

"""Gradients of a transformed model across its two meshes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from conclave.errors import OrderError, UnsupportedError
from conclave.regions import local_of
from conclave.transformation import transformed

_BUCKET_BYTES = 64 << 20


def _copies(tensor: torch.Tensor, world: int) -> int:
    """The ranks that hold the same part of `tensor`."""
    if not isinstance(tensor, DTensor):
        return world
    parts = 1
    for axis, placement in enumerate(tensor.placements):
        parts *= 1 if placement.is_replicate() else tensor.device_mesh.size(axis)
    return world // parts


def clip_grad_norm_(model: nn.Module, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> torch.Tensor:
    """Scales the gradients so that the norm of the whole model's gradient is at most `max_norm`; returns the norm before, fp32. Collective.

    Right for parameters on any of the meshes, sharded or not: torch's own takes one mesh at a time. Squares are summed in double precision and over the
    ranks in rank order.

    Raises:
        OrderError: the model is not transformed.
        UnsupportedError: norm_type is not 2.
    """
    state = transformed(model, "conclave.clip_grad_norm_")
    if float(norm_type) != 2.0:
        raise UnsupportedError(f"norm_type is {norm_type}, and only the 2-norm adds up over shards by squares.\nUse norm_type=2.")
    world = state.mesh.world_size
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    device = local_of(gradients[0]).device if gradients else torch.device(state.mesh.device_type)
    square = torch.zeros((), dtype=torch.float64, device=device)
    for gradient in gradients:
        square += local_of(gradient).double().square().sum() / _copies(gradient, world)
    squares = [torch.empty_like(square) for _ in range(world)]
    dist.all_gather(squares, square)
    norm = torch.stack(squares).sum().sqrt()
    if error_if_nonfinite and not torch.isfinite(norm):
        raise RuntimeError(f"the norm of the gradient is {norm.item()}, so it cannot be clipped")
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        local = local_of(gradient)
        local.mul_(factor.to(local.dtype))
    return norm.float()


def synchronize_gradients(model: nn.Module) -> None:
    """Averages the gradients of a model that is transformed but not sharded, after backward: dense ones over all ranks, experts' over those that hold
    the same ones. Collective. With gradient accumulation, call it once, after the last backward.

    Raises:
        OrderError: the model is not transformed, or sharded (then backward has averaged already).
    """
    state = transformed(model, "conclave.synchronize_gradients")
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        raise OrderError("the model is sharded by fully_shard, whose backward averages gradients already.\nLeave out conclave.synchronize_gradients.")
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

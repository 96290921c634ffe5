"""Calls of PyTorch that scripts make by habit and that know one mesh only: with divided experts they do what is meant, or name the remedy.

Models without divided experts never notice. The functions replaced here are of the one torch that this package accepts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp._fully_shard import _fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from conclave.errors import OrderError, UnsupportedError

EXPERT_AXIS, EXPERT_SHARD_AXIS = "expert", "expert_shard"


@functools.cache
def install() -> None:
    """To be called where experts are divided first."""
    for wrapper in (DistributedDataParallel, FullyShardedDataParallel):
        _check_before(wrapper, "__init__", _refuse_wrapper)
    _check_before(_fully_shard, "_init_param_group", _refuse_mixed_group)
    clip_grad._get_total_norm = _norm_over_meshes(clip_grad._get_total_norm)
    clip_grad._clip_grads_with_norm_ = _mesh_by_mesh(clip_grad._clip_grads_with_norm_)
    clip_grad.get_total_norm, clip_grad.clip_grads_with_norm_ = clip_grad._get_total_norm, clip_grad._clip_grads_with_norm_
    torch.nn.utils.get_total_norm, torch.nn.utils.clip_grads_with_norm_ = clip_grad._get_total_norm, clip_grad._clip_grads_with_norm_
    register_optimizer_step_pre_hook(_refuse_optimizer)


def _check_before(owner: Any, name: str, check: Callable[..., None]) -> None:
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def checked(*arguments: Any, **options: Any) -> Any:
        check(*arguments, **options)
        return plain(*arguments, **options)

    setattr(owner, name, checked)


def _refuse_wrapper(self: nn.Module, module: nn.Module, *arguments: Any, **options: Any) -> None:
    if any(hasattr(each, "conclave_axis") and each.conclave_axis.degree > 1 for each in module.modules()):
        raise OrderError(f"{type(self).__name__} would average each rank's own experts with others.\n"
                         "Use conclave.fully_shard(model), or leave it out and call conclave.synchronize_gradients(model) after backward.")


def _refuse_mixed_group(state: Any, params: list[nn.Parameter], modules: tuple[nn.Module, ...], mesh_info: Any, *arguments: Any) -> None:
    experts = [parameter for parameter in params if isinstance(parameter, DTensor) and EXPERT_AXIS in (parameter.device_mesh.mesh_dim_names or ())]
    if experts and EXPERT_SHARD_AXIS not in (mesh_info.mesh.mesh_dim_names or ()):
        raise OrderError(f"fully_shard of {type(modules[0]).__name__} would divide experts among ranks that do not hold the same ones.\n"
                         "Use conclave.fully_shard(model), or first fully_shard(layer.mlp.experts, mesh=mesh.expert_data) with the mesh of conclave.init.")


def _mesh_of(tensor: torch.Tensor) -> DeviceMesh | None:
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def _by_mesh(tensors: Iterable[torch.Tensor], mesh_of: Callable[[torch.Tensor], DeviceMesh | None]) -> list[list[torch.Tensor]]:
    groups: dict[DeviceMesh | None, list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(mesh_of(tensor), []).append(tensor)
    return list(groups.values())


def _norm_over_meshes(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(plain)
    def total_norm(tensors: Any, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None) -> torch.Tensor:
        groups = _by_mesh([tensors] if isinstance(tensors, torch.Tensor) else tensors, _mesh_of)
        if len(groups) < 2:
            return plain([tensor for group in groups for tensor in group], norm_type, error_if_nonfinite, foreach)
        norms = [plain(group, norm_type, False, foreach) for group in groups]
        return plain([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms], norm_type, error_if_nonfinite, foreach)

    return total_norm


def _mesh_by_mesh(plain: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(plain)
    def clip(parameters: Any, max_norm: float, total_norm: torch.Tensor, foreach: bool | None = None) -> None:
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else [each for each in parameters if each.grad is not None]
        for group in _by_mesh(parameters, lambda parameter: _mesh_of(parameter.grad)):
            plain(group, max_norm, total_norm, foreach)

    return clip


def _refuse_optimizer(optimizer: Optimizer, arguments: Any, options: Any) -> None:
    name = type(optimizer).__name__
    for group in optimizer.param_groups:
        meshes = {_mesh_of(parameter) for parameter in group["params"]}
        if "Adafactor" in name and meshes != {None}:
            raise UnsupportedError(f"{name} takes means over rows and columns, which no rank has whole of a divided parameter.\n"
                                   "Use torch.optim.AdamW(conclave.parameter_groups(model), ...).")
        if len(meshes) > 1 and (group.get("fused") or group.get("foreach")):
            raise UnsupportedError(f"{name} is fused or foreach and has dense parameters and experts in one group, which lie on different meshes.\n"
                                   "Give it conclave.parameter_groups(model) instead of model.parameters().")

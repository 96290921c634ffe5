"""State dictionaries for torch.distributed.checkpoint, and full ones from rank 0."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict, set_model_state_dict, set_optimizer_state_dict

from conclave.errors import CheckpointError
from conclave.initialization import allocate, check_materialized, fill
from conclave.regions import Region, local_of, stored_tensors, tied_names
from conclave.transformed_model import transformed


def state_dict(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """{"model": ..., "optimizer": ...} for torch.distributed.checkpoint.save and load: DTensors that know their part of the whole.

    So a checkpoint loads at another expert degree, shard degree or number of ranks: `load` fills the tensors in place, then `load_state_dict` gives
    them to model and optimizer.

    Raises:
        OrderError: the model is not transformed.
        NotMaterializedError: something is on the meta device.
    """
    transformed(model, "conclave.state_dict")
    check_materialized(model)
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    if optimizer is not None:
        state["optimizer"] = get_optimizer_state_dict(model, optimizer)
    return state


def load_state_dict(model: nn.Module, state: Mapping[str, Any], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Takes back what `state_dict` gave and torch.distributed.checkpoint.load has filled.

    Raises:
        CheckpointError: the state lacks a part that is asked for.
    """
    transformed(model, "conclave.load_state_dict")
    for part in ["model", *(["optimizer"] if optimizer is not None else [])]:
        if part not in state:
            raise CheckpointError(f"the state has no {part!r}, only {', '.join(map(repr, state))}.\nGive what conclave.state_dict(model, optimizer) returned.")
    set_model_state_dict(model, state["model"])
    if optimizer is not None:
        set_optimizer_state_dict(model, optimizer, state["optimizer"])


@torch.no_grad()
def load_state_dict_from_rank0(model: nn.Module, state: Mapping[str, torch.Tensor] | None) -> None:
    """Every rank takes its parts of a full state dictionary that rank 0 has, under Transformers' own names. Collective; others give None.

    One tensor at a time travels, so a rank needs its parts and one tensor more. A model on the meta device is materialized. A tied parameter may come by
    either name; a task's head that is not there starts anew, which a warning says.

    Raises:
        CheckpointError: on every rank: a parameter is missing or has another shape.
    """
    mesh = transformed(model, "conclave.load_state_dict_from_rank0").mesh
    shapes = {name: tuple(tensor.shape) for name, tensor in stored_tensors(model).items()}
    if dist.get_rank() == 0 and state is not None:  # a tied parameter may come by either name
        state = {**state, **{name: state[other] for name, other in tied_names(model, shapes).items() if name not in state and other in state}}
    plan = [_plan(model, shapes, state) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(plan, src=0)
    refusal, new = plan[0]
    if refusal is not None:
        raise CheckpointError(refusal)
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if on_meta:
        allocate(model, stored=shapes)
    if new and dist.get_rank() == 0:
        warnings.warn(f"{', '.join(new)} of {type(model).__name__} is not in the state dictionary: it starts anew and must be trained before it is used.", stacklevel=2)
    for name, tensor in stored_tensors(model).items():
        if name in new:
            if on_meta:
                fill(model, name, mesh.seed)
            continue
        local = local_of(tensor)
        if dist.get_rank() == 0:
            whole = state[name].detach().to(device=local.device, dtype=tensor.dtype, copy=True).contiguous()
        else:
            whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=local.device)
        dist.broadcast(whole, src=0)
        local.copy_(whole[Region.of(tensor).slices] if whole.ndim else whole)
    check_materialized(model)


def _plan(model: nn.Module, shapes: dict[str, tuple[int, ...]], state: Mapping[str, torch.Tensor] | None) -> tuple[str | None, list[str]]:
    """Why not, and the parameters of a head that starts anew."""
    if state is None:
        return "rank 0 gave no state dictionary.\nGive the full one on rank 0 and None on the others.", []
    inside = f"{getattr(model, 'base_model_prefix', '')}."
    missing = [name for name in shapes if name not in state]
    if missing and (any(name.startswith(inside) for name in missing) or getattr(model, "can_generate", lambda: True)()):
        return f"the state dictionary of rank 0 lacks {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""), []
    for name, shape in shapes.items():
        if name in state and tuple(state[name].shape) != shape:
            return f"{name} has the shape {list(state[name].shape)} in the state dictionary of rank 0, and the model wants {list(shape)}", []
    return None, missing

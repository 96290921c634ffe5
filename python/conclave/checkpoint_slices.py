"""A rank's parts of parameters and AdamW's moments, as ranges of the program's flattened tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.optimizer import Optimizer

from conclave.program_names import Place, places_of
from conclave.regions import Region, local_of, stored_tensors

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Slices:
    """Slice i holds the elements from `begins[i]` on of the tensor `names[i]` of `shapes[i]`: `data[i]`, a view of memory, 1-D."""

    names: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    data: list[torch.Tensor] = field(default_factory=list)
    updates: int = 0  # of the optimizer
    steps: list[tuple[Optimizer, nn.Parameter]] = field(default_factory=list)

    def columns(self) -> tuple[list[str], list[list[int]], list[int], list[torch.Tensor]]:
        return self.names, self.shapes, self.begins, self.data

    def add(self, kind: str, place: Place, shape: tuple[int, ...], tensor: torch.Tensor, share: tuple[int, int]) -> None:
        """`share`: (this rank's number, how many): of ranks that hold the same, each gives a part."""
        flat, done = local_of(tensor).detach(), 0
        if not flat.is_contiguous():
            raise RuntimeError(f"{place.name} does not lie in one piece")
        flat = flat.view(-1)
        for begin, count in Region.of(tensor).runs(shape):
            first, last = (count * number // share[1] for number in (share[0], share[0] + 1))
            if last > first:
                self.names.append(f"{kind}/{place.name}")
                self.shapes.append(list(place.shape))
                self.begins.append(place.begin + begin + first)
                self.data.append(flat[done + first : done + last])
            done += count

    def take(self, updates: int) -> None:
        """After the moments were filled: the optimizer's own count."""
        for optimizer, parameter in self.steps:
            optimizer.state[parameter]["step"].fill_(float(updates))


def parameter_slices(model: nn.Module, optimizer: Optimizer | None, *, saves: bool) -> Slices:
    """`saves`: each element of one rank only; else all that this rank holds. Collective where it saves. An optimizer that has not stepped yet gets its state:
    moments of zero."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    places, tensors = places_of(model), stored_tensors(model)
    shares = _shares(tensors) if saves else dict.fromkeys(tensors, (0, 1))
    slices, managed = Slices(), _managed(optimizer)
    for name, tensor in tensors.items():
        slices.add("parameter", places[name], tuple(tensor.shape), tensor, shares[name])
        if id(tensor) in managed:
            state = _state_of(optimizer, tensor)
            slices.updates = max(slices.updates, int(state["step"]))
            slices.steps.append((optimizer, tensor))
            for kind in MOMENTS:
                slices.add(kind, places[name], tuple(tensor.shape), state[kind], shares[name])
        elif saves and optimizer is not None and not isinstance(tensor, nn.Parameter) and places[name].name != name:
            for kind in MOMENTS:  # a selection bias is a parameter to the program, which has moments of all
                slices.add(kind, places[name], tuple(tensor.shape), torch.zeros_like(tensor), shares[name])
    return slices


def _managed(optimizer: Optimizer | None) -> set[int]:
    return set() if optimizer is None else {id(parameter) for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad}


def _state_of(optimizer: Optimizer, parameter: torch.Tensor) -> dict[str, Any]:
    """As AdamW makes it at its first step."""
    state = optimizer.state[parameter]
    if not state:
        group = next(group for group in optimizer.param_groups if any(each is parameter for each in group["params"]))
        on_device = group.get("fused") or group.get("capturable")
        state["step"] = torch.zeros((), dtype=torch.float32, device=local_of(parameter).device if on_device else "cpu")
        for kind in MOMENTS:
            state[kind] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state


def _shares(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, int]]:
    """Which part of its region a rank saves: ranks that hold the same region divide it."""
    own = {name: Region.of(tensor) for name, tensor in tensors.items()}
    ranks: list[dict[str, Region]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, own)
    shares = {}
    for name, region in own.items():
        alike = [rank for rank, regions in enumerate(ranks) if regions[name] == region and prod(region.size)]
        shares[name] = (alike.index(dist.get_rank()), len(alike)) if alike else (0, 1)
    return shares

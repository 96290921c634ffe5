"""The selection bias of moe_load_balancing="bias": a buffer of each layer's router, which follows the load after every step of the optimizer."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from conclave._library import operators

# In a state dictionary, and so in checkpoints, it is the router's. Folders of Transformers have no place for it.
SELECTION_BIAS = "conclave_selection_bias"
DEFAULT_RATE = 0.001  # as in a job

_models: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def give_bias(model: nn.Module, gates: list[nn.Module]) -> None:
    """To `model`, whose routers are `gates`. A copy of the model keeps its bias as it is."""
    for gate in gates:
        gate.register_buffer(SELECTION_BIAS, torch.zeros(gate.conclave_router.load.experts, device=gate.weight.device))
    _models.add(model)
    _update_after_steps()


def is_selection_bias(name: str) -> bool:
    return name.rpartition(".")[2] == SELECTION_BIAS


def has_bias(model: nn.Module) -> bool:
    return any(is_selection_bias(name) for name, _ in model.named_buffers())


@functools.cache
def _update_after_steps() -> None:
    register_optimizer_step_post_hook(_update)


@torch.no_grad()
def _update(optimizer: Optimizer, arguments: Any, options: Any) -> None:
    """All ranks step the same optimizers, so all update the same models."""
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for model in list(_models):
        if not any(id(parameter) in stepped for parameter in model.parameters()):
            continue
        gates = [module for module in model.modules() if hasattr(module, SELECTION_BIAS)]
        loads = [gate.conclave_router.load for gate in gates]
        counts = torch.stack([load.since_update for load in loads]).double()
        dist.all_reduce(counts)
        rate = gates[0].conclave_router.config.bias_update_rate or DEFAULT_RATE
        bias = torch.stack([getattr(gate, SELECTION_BIAS).float() for gate in gates])
        for gate, load, updated in zip(gates, loads, operators().updated_selection_bias(bias, counts, rate), strict=True):
            getattr(gate, SELECTION_BIAS).copy_(updated)
            load.since_update.zero_()

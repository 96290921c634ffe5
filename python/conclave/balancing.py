"""Balancing rules of a transformed model: through Transformers' own loss, through one of Conclave's, or through the choice of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from conclave._library import operators
from conclave.errors import ConfigError, UnsupportedModelError
from conclave.load import LayerLoad
from conclave.moe_config import MoEConfig
from conclave.selection_bias import SELECTION_BIAS, give_bias

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Families whose router is a softmax over all experts, then top-k, and returns (logits, weights, choices).
SOFTMAX_ROUTERS = ("mixtral", "qwen3_moe", "olmoe", "qwen2_moe")
SINKHORN_TOLERANCE, SINKHORN_ITERATIONS = 0.01, 50  # as in a job


@dataclass
class Router:
    """What a layer's router does besides Transformers' own, as its attribute `conclave_router`."""

    config: MoEConfig
    load: LayerLoad
    latest: tuple[torch.Tensor, torch.Tensor] | None = None  # logits [T,E] and choices [T,K] of the forward pass, for losses


def apply_balancing(model: PreTrainedModel, config: MoEConfig, blocks: list[nn.Module]) -> dict[str, Any]:
    """`blocks`: the modules around the experts; the router is their `gate`. Returns what the model's configuration said before, of the keys that changed."""
    wanted: dict[str, Any] = {}
    if config.moe_load_balancing is not None:
        wanted["output_router_logits"] = config.moe_load_balancing == "aux_loss" and not config.has_own_aux_loss
    if config.moe_aux_loss_coeff is not None:
        wanted["router_aux_loss_coef"] = config.moe_aux_loss_coeff
        if hasattr(model, "router_aux_loss_coef"):
            model.router_aux_loss_coef = config.moe_aux_loss_coeff
    if config.router_jitter_noise is not None:
        wanted["router_jitter_noise"] = config.router_jitter_noise
        for block in blocks:
            block.jitter_noise = config.router_jitter_noise
    given = {key: getattr(model.config, key) for key in wanted if hasattr(model.config, key)}
    for key in given:
        setattr(model.config, key, wanted[key])
    if model.config.model_type in SOFTMAX_ROUTERS:
        for block in blocks:
            _watch_router(block.gate, Router(config, _load_of(block)))
        if config.moe_load_balancing == "bias":
            give_bias(model, [block.gate for block in blocks])
    return given


def _load_of(block: nn.Module) -> LayerLoad:
    return next(module.conclave_axis.load for module in block.modules() if hasattr(module, "conclave_axis"))


def _watch_router(gate: nn.Module, router: Router) -> None:
    router.load.by_router = True
    router.load.has_capacity = router.config.capacity_factor is not None
    if router.config.moe_load_balancing == "bias":
        router.load.since_update = torch.zeros(router.load.experts, dtype=torch.int64, device="cpu" if gate.weight.is_meta else gate.weight.device)
    gate.conclave_router = router
    gate.register_forward_hook(_after_router)


def check_balancing(model: PreTrainedModel, config: MoEConfig) -> None:
    """Refuses a rule that does not suit the model's router, or a loss that the model does not have."""
    family = model.config.model_type
    if (config.moe_load_balancing == "aux_loss" or config.moe_aux_loss_coeff is not None) and not hasattr(model, "router_aux_loss_coef"):
        raise UnsupportedModelError(f"an auxiliary loss is asked for, and {type(model).__name__} of Transformers computes none.\n"
                                    "Leave moe_load_balancing and moe_aux_loss_coeff out.")
    if config.moe_aux_loss_coeff is not None and config.moe_load_balancing is None and not model.config.output_router_logits:
        raise ConfigError(f"moe_aux_loss_coeff is {config.moe_aux_loss_coeff}, but the model's auxiliary loss is off (output_router_logits), so nobody would "
                          "use it.\nSet moe_load_balancing='aux_loss' beside it.")
    if config.router_jitter_noise is not None and not hasattr(model.config, "router_jitter_noise"):
        raise UnsupportedModelError(f"router_jitter_noise is {config.router_jitter_noise}, and {type(model).__name__} has no jitter.\nLeave it out.")
    asked = {"moe_load_balancing": config.moe_load_balancing in ("sinkhorn", "bias", "balanced"), "moe_z_loss_coeff": config.moe_z_loss_coeff,
             "aux_loss_scope": config.aux_loss_scope == "all_ranks", "aux_loss_layers": config.aux_loss_layers == "each",
             "capacity_factor": config.capacity_factor}
    for name, used in asked.items():
        if used and family not in SOFTMAX_ROUTERS:
            raise UnsupportedModelError(f"{name} is {getattr(config, name)!r}, which balances softmax routers ({', '.join(SOFTMAX_ROUTERS)}), and "
                                        f"{type(model).__name__} is of the family {family!r}.\nLeave it out.")


def _after_router(gate: nn.Module, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    """Other experts and their weights in the place of the router's, where a rule says so. The weights are the router's scores of the chosen."""
    logits, weight, choice = output
    router: Router = gate.conclave_router
    config, dispatched, changed = router.config, choice, None
    if config.chooses and (gate.training or config.moe_load_balancing == "bias"):
        choice, dispatched = _choose(gate, logits)
        chosen = torch.softmax(logits.float(), dim=-1).gather(1, choice)
        if getattr(gate, "norm_topk_prob", True):
            chosen = chosen / chosen.sum(dim=-1, keepdim=True)
        changed = logits, chosen.to(weight.dtype), dispatched
    if gate.training and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:  # not a recomputation by backward
        router.load.record(logits, choice, dispatched)
        if config.has_own_losses:
            router.latest = logits, choice
    return changed


def _choose(gate: nn.Module, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    config = gate.conclave_router.config
    bias = getattr(gate, SELECTION_BIAS).float() if config.moe_load_balancing == "bias" else None
    return operators().choose_experts(logits.detach(), gate.top_k, config.moe_load_balancing or "none", bias, config.sinkhorn_tolerance or SINKHORN_TOLERANCE,
                                      config.sinkhorn_iterations or SINKHORN_ITERATIONS, config.capacity_factor, config.drop_policy or "probability",
                                      gate.training, dist.group.WORLD.group_name)

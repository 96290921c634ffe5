"""Balancing rules of a transformed model: through Transformers' own loss, or through the choice of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from conclave._library import operators
from conclave.errors import ConfigError, UnsupportedModelError
from conclave.moe_config import MoEConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Families whose router is a softmax over all experts, then top-k, and returns (logits, weights, choices).
SOFTMAX_ROUTERS = ("mixtral", "qwen3_moe", "olmoe")


def apply_balancing(model: PreTrainedModel, config: MoEConfig, blocks: list[nn.Module]) -> dict[str, Any]:
    """`blocks`: the modules around the experts; the router is their `gate`. Returns what the model's configuration said before, of the keys that changed."""
    wanted: dict[str, Any] = {}
    if config.moe_load_balancing is not None:
        wanted["output_router_logits"] = config.moe_load_balancing == "aux_loss"
    if config.moe_aux_loss_coeff is not None:
        wanted["router_aux_loss_coef"] = config.moe_aux_loss_coeff
        if hasattr(model, "router_aux_loss_coef"):
            model.router_aux_loss_coef = config.moe_aux_loss_coeff
    given = {key: getattr(model.config, key) for key in wanted if hasattr(model.config, key)}
    for key in given:
        setattr(model.config, key, wanted[key])
    if config.moe_load_balancing == "sinkhorn":
        for block in blocks:
            block.gate.register_forward_hook(_choose_by_sinkhorn)
    return given


def check_balancing(model: PreTrainedModel, config: MoEConfig) -> None:
    """Refuses a rule that does not suit the model's router, or a loss that the model does not have."""
    if (config.moe_load_balancing == "aux_loss" or config.moe_aux_loss_coeff is not None) and not hasattr(model, "router_aux_loss_coef"):
        raise UnsupportedModelError(f"an auxiliary loss is asked for, and {type(model).__name__} of Transformers computes none.\n"
                                    "Leave moe_load_balancing and moe_aux_loss_coeff out.")
    if config.moe_aux_loss_coeff is not None and config.moe_load_balancing is None and not model.config.output_router_logits:
        raise ConfigError(f"moe_aux_loss_coeff is {config.moe_aux_loss_coeff}, but the model's auxiliary loss is off (output_router_logits), so nobody would "
                          "use it.\nSet moe_load_balancing='aux_loss' beside it.")
    if config.moe_load_balancing == "sinkhorn" and model.config.model_type not in SOFTMAX_ROUTERS:
        raise UnsupportedModelError(f"moe_load_balancing is 'sinkhorn', which balances softmax routers ({', '.join(SOFTMAX_ROUTERS)}), and "
                                    f"{type(model).__name__} is of the family {model.config.model_type!r}.\nUse None, 'aux_loss' or 'none'.")


def _choose_by_sinkhorn(gate: nn.Module, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    """In training, other experts and their weights in the place of the router's. The weights are the router's scores of the chosen."""
    if not gate.training:
        return None
    logits, router_weight, _ = output
    choice = operators().sinkhorn_choice(logits, gate.top_k, dist.group.WORLD.group_name)
    weight = torch.softmax(logits.float(), dim=-1).gather(1, choice)
    if getattr(gate, "norm_topk_prob", True):
        weight = weight / weight.sum(dim=-1, keepdim=True)
    return logits, weight.to(router_weight.dtype), choice

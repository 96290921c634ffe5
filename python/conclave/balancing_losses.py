"""Balancing losses that Transformers does not compute: over the tokens of all ranks, of each layer alone, and the z-loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from conclave._library import operators
from conclave.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from conclave.moe_config import MoEConfig


def routers_of(model: nn.Module) -> list[nn.Module]:
    """The layers' routers, in their order."""
    return [module for module in model.modules() if hasattr(module, "conclave_router")]


def begin_forward(model: nn.Module, config: MoEConfig, options: dict[str, Any]) -> None:
    """To be called before a forward pass whose losses are Conclave's. Transformers' own must not be added besides."""
    if config.has_own_aux_loss and options.get("output_router_logits"):
        raise ConfigError("output_router_logits is True, which adds Transformers' own balancing loss to that of aux_loss_scope or aux_loss_layers.\n"
                          "Leave it out.")
    for gate in routers_of(model):
        gate.conclave_router.latest = None


def add_losses(model: nn.Module, config: MoEConfig, output: Any, attention_mask: torch.Tensor | None, factor: float) -> Any:
    """Adds the losses to `output.loss`, if there is one, and tells them, without coefficients, as `aux_loss` and `z_loss`. Collective in training; in
    evaluation nothing is added. Padded tokens do not count. `factor`: of both, besides their coefficients."""
    kept = [gate.conclave_router.latest for gate in routers_of(model)]
    if not kept or any(latest is None for latest in kept):
        return output
    for gate in routers_of(model):
        gate.conclave_router.latest = None
    if not hasattr(output, "loss"):
        raise UnsupportedError(f"the model returned {type(output).__name__}, and a balancing loss has no place in it.\nLeave return_dict=False out.")
    logits, choice = (torch.stack([latest[place] for latest in kept]) for place in (0, 1))
    if attention_mask is not None and attention_mask.ndim == 2 and attention_mask.numel() == logits.shape[1]:
        rows = attention_mask.reshape(-1).bool()
        logits, choice = logits[:, rows], choice[:, rows]
    aux_loss, z_loss = operators().balancing_losses(logits.float(), choice, dist.group.WORLD.group_name, config.aux_loss_scope == "all_ranks",
                                                    config.aux_loss_layers == "each").unbind()
    total = (config.moe_z_loss_coeff or 0.0) * z_loss
    if config.has_own_aux_loss:
        total = total + model.router_aux_loss_coef * aux_loss
        output["aux_loss"] = aux_loss
    output["z_loss"] = z_loss
    output["balancing_loss"] = total
    if output.loss is not None:
        output["loss"] = output.loss + (factor * total).to(output.loss.dtype)
    return output

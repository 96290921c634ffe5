"""What a transformed model does differently from the class that it had: methods whose plain form would be wrong on a slice of the experts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from conclave import adapters, balancing_losses
from conclave.activation_checkpointing import checkpoint_context
from conclave.derived_class import stand_before
from conclave.errors import NotMaterializedError, OrderError, UnsupportedError
from conclave.generation import JoinedGeneration
from conclave.mesh import Mesh
from conclave.moe_config import MoEConfig
from conclave.offloading import is_offloaded, offload_activations

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Transformed:
    """What `transform` leaves at the model, as its attribute `conclave`."""

    mesh: Mesh
    config: MoEConfig
    experts: dict[str, nn.Module] = field(repr=False)  # by the module's name
    given_config: dict[str, Any] = field(default_factory=dict)  # what balancing has changed in the model's configuration: as it was

    def expert_parameters(self) -> dict[int, nn.Parameter]:
        """The experts' parameters as they are now (fully_shard puts others in their place), by id."""
        return {id(parameter): parameter for module in self.experts.values() for name in EXPERT_PARAMETERS for parameter in [getattr(module, name)]}


def transformed(model: nn.Module, caller: str) -> Transformed:
    """What `transform` left at the model (also inside a PeftModel), or what is in a model of one's own with conclave.nn.MoE; refuses any other."""
    adapters.adopt(model)
    state = getattr(model, "conclave", None)
    if not isinstance(state, Transformed):
        experts = {name: module for name, module in model.named_modules() if hasattr(module, "conclave_axis")}
        if not experts:
            raise OrderError(f"{caller} needs a transformed model, and this {type(model).__name__} is not.\nCall conclave.transform(model) before.")
        return Transformed(next(iter(experts.values())).conclave_axis.mesh, MoEConfig(), experts)
    return state


class TransformedModel(JoinedGeneration):
    """Stands before the model's own class."""

    conclave: Transformed

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not self.__dict__.get("_conclave_is_real"):
            self._check_real()
        config = self.conclave.config
        if not config.has_own_losses:
            return super().__call__(*arguments, **options)
        balancing_losses.begin_forward(self, config, options)
        output = super().__call__(*arguments, **options)
        mask = options.get("attention_mask", arguments[1] if len(arguments) > 1 else None)
        return balancing_losses.add_losses(self, config, output, mask, self.__dict__.get("conclave_balancing_factor", 1.0))

    def _check_real(self) -> None:
        """Before FSDP2 says it in its own words."""
        left = next((name for name, parameter in self.named_parameters() if parameter.is_meta), None)
        if left is not None:
            raise NotMaterializedError(f"{left} is still on the meta device, so the model cannot compute.\n"
                                       "Call conclave.load_pretrained(model, folder) or conclave.materialize(model) before.")
        self.__dict__["_conclave_is_real"] = True

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """Without the balancing loss, which belongs to training and fails in Transformers' generate() where a batch is masked."""
        balances = getattr(self.config, "output_router_logits", None)
        if not balances:
            return super().generate(*arguments, **options)
        self.config.output_router_logits = False
        try:
            return super().generate(*arguments, **options)
        finally:
            self.config.output_router_logits = balances

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        """Uses `checkpoint_context` unless another `context_fn` is given; offloads what is kept where `conclave.init` was told so."""
        chosen = {"use_reentrant": False, "context_fn": checkpoint_context, **(gradient_checkpointing_kwargs or {})}
        if chosen["use_reentrant"]:
            raise UnsupportedError("use_reentrant is True, and reentrant checkpointing would dispatch every token once more in backward.\n"
                                   "Use {'use_reentrant': False}.")
        super().gradient_checkpointing_enable(gradient_checkpointing_kwargs=chosen, **options)
        mesh = self.conclave.mesh
        if mesh.activation_offloading and not is_offloaded(self):
            offload_activations(self, mesh.activation_loading_horizon)

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> torch.Tensor:
        """conclave.clip_grad_norm_, under the name that it has in FullyShardedDataParallel."""
        from conclave.gradients import clip_grad_norm_

        return clip_grad_norm_(self, max_norm, norm_type)

    def save_pretrained(self, *arguments: object, **options: object) -> NoReturn:
        raise OrderError("model.save_pretrained would write this rank's slice of the experts.\nUse conclave.save_pretrained(model, folder), on all ranks.")

    def set_experts_implementation(self, experts_implementation: object) -> None:
        if experts_implementation != "conclave":
            raise UnsupportedError(f"set_experts_implementation({experts_implementation!r}) would compute a rank's experts as if they were all.\n"
                                   "A transformed model computes its experts by Conclave; leave the call out, or do not transform the model.")


def become_transformed(model: PreTrainedModel, state: Transformed) -> None:
    stand_before(model, TransformedModel)
    model.conclave = state

"""Adapters of PEFT on a transformed model, whether they were added before `transform` or after it. Imports PEFT only where the script has."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from conclave.derived_class import plain_class, stand_before
from conclave.errors import OrderError, ProcessGroupError, UnsupportedError


def is_adapted(model: nn.Module) -> bool:
    """Whether `model` is a PeftModel."""
    return "peft" in sys.modules and isinstance(model, sys.modules["peft"].PeftModel)


def base_of(model: nn.Module) -> nn.Module:
    """The model of Transformers inside a PeftModel; any other model itself."""
    return model.get_base_model() if is_adapted(model) else model


class AdaptedModel:
    """Stands before PeftModel."""

    def save_pretrained(self, *arguments: object, **options: object) -> NoReturn:
        raise OrderError("model.save_pretrained would write this rank's part of the adapters, on every rank.\n"
                         "Use conclave.save_pretrained(model, folder), on all ranks.")

    def _get_base_model_class(self, *arguments: Any, **options: Any) -> type:
        """What PEFT writes into adapter_config.json: the class of Transformers, without what fully_shard and `transform` stand before it."""
        return plain_class(super()._get_base_model_class(*arguments, **options))


def adopt(model: nn.Module) -> None:
    """Adapters of divided experts compute with this rank's experts from now on."""
    if "peft" in sys.modules:
        from conclave import expert_adapters

        expert_adapters.adopt(model)
    if is_adapted(model):
        stand_before(model, AdaptedModel)


def adopt_before_forward(block: nn.Module, inputs: tuple[Any, ...]) -> None:
    """A forward pre-hook of the module around the experts: get_peft_model after `transform` puts its own between them, and tells nobody."""
    adopt(block)


def check_adapters(model: nn.Module) -> None:
    """Refuses adapters that hold experts in a form that cannot be divided, and those that came after fully_shard."""
    if "peft" not in sys.modules:
        return
    from conclave import expert_adapters

    expert_adapters.refuse_copies_of_experts(model)
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        experts = {id(parameter) for module in model.modules() if hasattr(module, "conclave_axis") for parameter in module.parameters(recurse=False)}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor) and id(parameter) not in experts:
                raise OrderError(f"{name} was added after fully_shard, which neither divides it nor averages its gradient.\n"
                                 "Call get_peft_model before conclave.fully_shard.")


def refuse_bare_layers(model: nn.Module) -> None:
    """Refuses layers of PEFT in a model that is not a PeftModel: its folder would be neither a model's nor an adapter's."""
    if "peft" in sys.modules and not is_adapted(model):
        from peft.tuners.tuners_utils import BaseTunerLayer

        name = next((name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)), None)
        if name is not None:
            raise UnsupportedError(f"{name} is a layer of PEFT, but this {type(model).__name__} is not a PeftModel, so nobody could load what is saved of it.\n"
                                   "Give what peft.get_peft_model(model, config) returns; it also stands for model.add_adapter of Transformers.")


def check_prompts(model: nn.Module) -> None:
    """Refuses adapters that stand beside the model rather than in it."""
    if is_adapted(model):
        for name, config in model.peft_config.items():
            if config.is_prompt_learning:
                raise UnsupportedError(f"the adapter {name!r} is of the kind {config.peft_type.value}, whose prompts lie outside of the model that fully_shard "
                                       "divides.\nUse LoRA, or leave fully_shard out and call conclave.synchronize_gradients after backward.")


def check_same_adapters(model: nn.Module) -> None:
    """Refuses adapters that ranks have drawn differently. Collective; does its work once for the same adapters."""
    if not is_adapted(model):
        return
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad and not isinstance(parameter, DTensor)]
    base = base_of(model)
    if base.__dict__.get("_conclave_checked_adapters") == names:
        return
    own = [(name, tuple(value.shape), value.double().sum().item(), value.double().abs().sum().item())
           for name, value in ((name, model.get_parameter(name).detach()) for name in names)]
    all_ranks: list[list[tuple]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(all_ranks, own)
    if any(other != all_ranks[0] for other in all_ranks):
        different = sorted({name for other in all_ranks for (name, *_) in set(other) ^ set(all_ranks[0])})
        raise ProcessGroupError(f"the ranks hold different adapters: {len(different)} parameters, {different[0]} the first.\n"
                                "Give every rank the same seed (torch.manual_seed) before get_peft_model, or load the same adapter.")
    base.__dict__["_conclave_checked_adapters"] = names

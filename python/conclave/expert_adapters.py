"""LoRA of PEFT on divided experts (`target_parameters`). Every rank holds the whole of the small matrices A and B, as any dense parameter, and adds
the product of its own experts' parts to their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.distributed.tensor import DTensor

from conclave.errors import UnsupportedError
from conclave.regions import Region, local_of


class _TimesInBackward(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, factor: int) -> torch.Tensor:
        context.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * context.factor, None


class DividedParamWrapper(ParamWrapper):
    """PEFT puts a parametrization around the whole parameter, which is neither on this rank nor where FSDP2 looks for it. Here the experts are told
    what to add instead, and add it to their own part as they compute."""

    @contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        deltas = self.get_base_layer().conclave_deltas
        deltas[self.parameter_name] = [self._own_factors(name) for name in active_adapters if name in self.lora_A]
        try:
            yield
        finally:
            del deltas[self.parameter_name]

    def _own_factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """(lhs [L,out,r], rhs [L,r,in], scaling): the update of this rank's experts is scaling * lhs @ rhs.

        A and B are averaged over all ranks like dense parameters, while an expert's gradient reaches one rank of its axis only, as the mean over the
        axis: so it counts as often as the axis has ranks.
        """
        axis = self.get_base_layer().conclave_axis
        lhs, rhs, scaling = self.get_delta_factors(adapter_name)
        own = slice(axis.begin, axis.begin + axis.local)
        return _TimesInBackward.apply(lhs[own], axis.degree), _TimesInBackward.apply(rhs[own], axis.degree), scaling

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.lora_A:
                self._add(name, 1.0)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        while self.merged_adapters:
            self._add(self.merged_adapters.pop(), -1.0)

    @torch.no_grad()
    def _add(self, adapter_name: str, sign: float) -> None:
        parameter = self.get_param()
        experts, *rest = Region.of(parameter).slices
        whole = [weight.full_tensor() if isinstance(weight, DTensor) else weight
                 for weight in (self.lora_A[adapter_name].weight, self.lora_B[adapter_name].weight)]
        lhs = whole[1].reshape(whole[1].shape[0], -1, self.num_experts).permute(2, 0, 1)[experts]
        rhs = whole[0].reshape(self.num_experts, -1, whole[0].shape[-1])[experts]
        delta = torch.bmm(lhs, rhs)[(slice(None), *rest)]
        local_of(parameter).add_(delta.to(parameter.dtype), alpha=sign * self.scaling[adapter_name])


def adopt(model: nn.Module) -> None:
    for module in model.modules():
        if type(module) is ParamWrapper and hasattr(module.get_base_layer(), "conclave_axis"):
            module.__class__ = DividedParamWrapper


def refuse_copies_of_experts(model: nn.Module) -> None:
    for name, module in model.named_modules():
        copied = isinstance(module, AuxiliaryTrainingWrapper)
        wrapped = isinstance(module, BaseTunerLayer) and not isinstance(module, ParamWrapper)
        if (copied or wrapped) and any(isinstance(getattr(inner, "gate_up_proj", None), nn.Parameter) and hasattr(inner, "down_proj")
                                       for inner in module.modules()):
            raise UnsupportedError(f"{name} is a {type(module).__name__} of PEFT around experts; only LoRA by target_parameters can be divided among ranks.\n"
                                   "Use target_parameters=['...gate_up_proj', '...down_proj'], or train the experts without PEFT.")

"""PyTorch's FSDP2 over a transformed model: experts on the ranks that hold the same ones, everything else on the dense mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy
from torch.distributed.fsdp import fully_shard as torch_fully_shard
from torch.distributed.tensor import Shard
from transformers.modeling_layers import GradientCheckpointingLayer

from conclave.acceleration import accelerate_gathers
from conclave.adapters import base_of, check_adapters, check_prompts, check_same_adapters
from conclave.agreement import together
from conclave.errors import OrderError
from conclave.transformed_model import Transformed, transformed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fully_shard(model: PreTrainedModel, *, mp_policy: MixedPrecisionPolicy | None = None, offload_policy: OffloadPolicy | None = None,
                reshard_after_forward: bool = True) -> PreTrainedModel:
    """Applies torch.distributed.fsdp.fully_shard in the right order: experts on the expert mesh, each decoder layer and the rest on the dense mesh.

    The model is changed in place and returned; of a PeftModel, the model inside with its adapters. Where a rank alone holds its experts (expert
    degree = ranks), there is nobody to gather them from and they stay outside of FSDP, as DTensors on the expert axis: in their own dtype, computing in
    `mp_policy`'s. The manual way is in docs/python.md.

    Raises:
        OrderError: the model is not transformed, or sharded already.
        ProcessGroupError: the ranks have drawn different adapters.
        UnsupportedError: adapters of a kind that cannot be divided.
    """
    state = transformed(model, "conclave.fully_shard")
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        raise OrderError("the model is sharded already.\nCall conclave.fully_shard once, instead of torch's fully_shard.")
    together(lambda: (check_adapters(model), check_prompts(model)))
    check_same_adapters(model)
    options: dict[str, Any] = {"mp_policy": mp_policy or MixedPrecisionPolicy(), "offload_policy": offload_policy or OffloadPolicy(),
                               "reshard_after_forward": reshard_after_forward}
    alone = state.mesh.expert_data.size() == 1 and not isinstance(offload_policy, CPUOffloadPolicy)
    ignored = set(state.expert_parameters().values()) if alone else None
    if not alone:
        for module in state.experts.values():
            _shard_experts(module, state, **options)
    root = base_of(model)
    for layer in [module for module in root.modules() if isinstance(module, GradientCheckpointingLayer)]:
        torch_fully_shard(layer, mesh=state.mesh.dense_data, ignored_params=ignored, **options)
    torch_fully_shard(root, mesh=state.mesh.dense_data, ignored_params=ignored, **options)
    accelerate_gathers(root)
    return model


def _shard_experts(module: nn.Module, state: Transformed, **options: Any) -> None:
    """fully_shard of one layer's experts: over dim 0 where every rank gets whole experts, else over dim 1."""
    mesh = state.mesh.expert_data
    ranks = mesh.size(mesh.ndim - 1)
    local = module.num_experts // state.mesh.expert_parallel_degree

    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(0) if local % ranks == 0 or parameter.shape[1] % ranks else Shard(1)

    torch_fully_shard(module, mesh=mesh, shard_placement_fn=placement, **options)


def parameter_groups(model: nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups for an optimizer: matrices with `weight_decay`, norms and biases without, dense parameters apart from experts.

    PyTorch's fused and foreach optimizers take tensors of one mesh at a time, and dense parameters and experts lie on two.
    """
    state = transformed(model, "conclave.parameter_groups")
    check_adapters(model)
    experts = state.expert_parameters()
    groups: dict[tuple[bool, bool], list[torch.Tensor]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in experts, parameter.ndim > 1), []).append(parameter)
    return [{"params": parameters, "weight_decay": weight_decay if is_matrix else 0.0} for (_, is_matrix), parameters in groups.items()]

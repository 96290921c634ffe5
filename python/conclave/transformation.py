"""conclave.transform: gives each rank its slice of every layer's experts, in a model of Transformers that stays what it is otherwise."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from conclave.adapters import adopt, adopt_before_forward, base_of, check_adapters
from conclave.agreement import together
from conclave.balancing import apply_balancing, check_balancing
from conclave.errors import OrderError, ProcessGroupError, UnsupportedModelError
from conclave.experts import ExpertAxis, divided, module_forward
from conclave.mesh import Mesh, current_mesh
from conclave.moe_config import MoEConfig
from conclave.transformed_model import EXPERT_PARAMETERS, Transformed, become_transformed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Families that pass tests/python/test_transform.py. Others may have the same experts and yet do something around them that was never compared.
SUPPORTED_MODEL_TYPES = ("mixtral", "qwen3_moe", "olmoe", "qwen2_moe", "deepseek_v2", "deepseek_v3", "dots1", "exaone_moe", "flex_olmo", "glm4_moe",
                         "granitemoe", "minimax_m2")


def _transformed_experts_forward(self: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """The experts function that Transformers calls: hidden [T,H], index [T,K], weights [T,K] -> [T,H]."""
    return module_forward(self, hidden_states, top_k_index, top_k_weights)


ALL_EXPERTS_FUNCTIONS.register("conclave", _transformed_experts_forward)


def transform(model: PreTrainedModel, config: MoEConfig | Mapping[str, Any] | None = None) -> PreTrainedModel:
    """Give each rank its slice of every layer's experts and route tokens to them.

    The model is changed in place and returned. Expert parameters become DTensors on the expert axis, `gate_up_proj` [E,2I,H] and `down_proj` [E,H,I]
    sharded on dim 0, under their old names (at degree 1 they stay plain). A PeftModel is transformed inside. Router, losses and names in checkpoints
    stay Transformers' own. Call it on all ranks, after `conclave.init` and before `fully_shard`, on a model whose parameters are all real (then every
    rank must hold the same ones) or all on the meta device (then `load_pretrained` or `materialize` follows).

    A transformed model's gradient is the mean over the ranks that share a parameter, as that of `fully_shard` and DistributedDataParallel: experts'
    gradients are already the mean over the expert axis after backward.

    `config`: a MoEConfig or a dictionary of its fields; None: what `conclave.init` was given, if it was.

    Raises:
        UnsupportedModelError: the model's family, activation or experts' layout is not supported, or it has no auxiliary loss to switch on.
        UnsupportedError: adapters of PEFT around whole experts.
        ConfigError: a coefficient of a loss that is off.
        LayoutError: the number of experts is not a multiple of the expert degree.
        OrderError: the model is transformed or sharded already, or half, or on some ranks only, on the meta device.
        ProcessGroupError: `conclave.init` was not called, or ranks hold different models, weights or configs.
    """
    mesh = together(current_mesh) if dist.is_initialized() else current_mesh()
    config = mesh.moe if config is None else together(lambda: MoEConfig.of(config))
    base = base_of(model)
    experts = together(lambda: _checked_experts(model, base, mesh, config))
    _check_same_model(model, config)
    blocks = [base.get_submodule(_block_name(name)) for name in experts]
    for module in experts.values():
        _slice_experts(module, mesh, config)
    for block in blocks:
        block.register_forward_pre_hook(adopt_before_forward)
    given = apply_balancing(base, config, blocks)
    become_transformed(base, Transformed(mesh, config, experts, given))
    adopt(model)
    return model


def _checked_experts(model: nn.Module, base: nn.Module, mesh: Mesh, config: MoEConfig) -> dict[str, nn.Module]:
    _check_order(model)
    check_adapters(model)
    experts = _find_experts(base)
    check_balancing(base, config)
    for module in experts.values():
        mesh.check_experts(module.num_experts)
    return experts


def _block_name(experts_name: str) -> str:
    """The name of the module around the experts, with or without adapters in between."""
    while experts_name.endswith(".base_layer"):
        experts_name = experts_name.removesuffix(".base_layer")
    return experts_name.rpartition(".")[0]


def _check_order(model: nn.Module) -> None:
    if isinstance(getattr(model, "conclave", None), Transformed):
        raise OrderError("the model is transformed already, and a slice of a slice would lose experts.\nCall conclave.transform once.")
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind.startswith("FSDP") or kind in ("DistributedDataParallel", "FullyShardedDataParallel"):
            raise OrderError(f"{name or 'the model'} is a {kind}: its parameters are wrapped already, and experts must be sliced first.\n"
                             "Call conclave.transform before fully_shard; a transformed model needs no DistributedDataParallel "
                             "(conclave.synchronize_gradients averages).")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    meta = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    real = [name for name, tensor in model.named_parameters() if not tensor.is_meta]
    if meta and real:
        raise OrderError(f"the model is half on the meta device: {len(meta)} parameters ({meta[0]}, ...) are, {len(real)} ({real[0]}, ...) are not.\n"
                         "Build all of it under `with torch.device('meta')`, or load all of it.")
    if any(isinstance(tensor, DTensor) for _, tensor in tensors):
        raise OrderError("the model has DTensors already, and experts must be sliced first.\n"
                         "Call conclave.transform on the model as Transformers built it.")


def _find_experts(model: nn.Module) -> dict[str, nn.Module]:
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UnsupportedModelError(f"{type(model).__name__} is of the family {model_type!r}, which was never compared with plain Transformers.\n"
                                    f"Supported: {', '.join(SUPPORTED_MODEL_TYPES)}. For a model of your own use conclave.nn.MoE.")
    found = {name: module for name, module in model.named_modules() if all(isinstance(getattr(module, key, None), nn.Parameter) for key in EXPERT_PARAMETERS)}
    if not found:
        raise UnsupportedModelError(f"{type(model).__name__} has no module with {' and '.join(EXPERT_PARAMETERS)}: there are no experts to divide.")
    for name, module in found.items():
        if (getattr(module, "is_transposed", True) or getattr(module, "has_bias", True) or not getattr(module, "has_gate", False)
                or not getattr(module, "is_concatenated", False) or type(module)._apply_gate is not _default_apply_gate):
            raise UnsupportedModelError(f"{name} does not hold its experts as gate_up [E,2I,H] and down [E,H,I] without bias, as Conclave's kernels want them.")
        if not isinstance(module.act_fn, nn.SiLU) and type(module.act_fn).__name__ != "SiLUActivation":
            raise UnsupportedModelError(f"{name} has the activation {type(module.act_fn).__name__}, and Conclave's experts compute SwiGLU (silu).")
    return found


def _check_same_model(model: nn.Module, config: MoEConfig) -> None:
    """Ranks must agree on what there is before they compare values: one that builds another model would leave the others waiting."""
    parameters = dict(model.named_parameters())
    on_meta = next(iter(parameters.values())).is_meta
    own = (on_meta, repr(config), model.training, [(name, tuple(value.shape), value.dtype) for name, value in parameters.items()])
    others: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(others, own)
    if any(other[0] != others[0][0] for other in others):
        real = [rank for rank, other in enumerate(others) if not other[0]]
        raise OrderError(f"rank {real[0]} has real weights, and {len(others) - len(real)} of {len(others)} ranks have a model on the meta device.\n"
                         "Build the model on the meta device on every rank; after transform (and fully_shard) give rank 0's weights to all: "
                         "conclave.load_state_dict_from_rank0(model, state_dict if rank == 0 else None).")
    if any(other[1] != others[0][1] for other in others):
        raise ProcessGroupError("the ranks transform with different MoEConfigs.\nGive every rank the same.")
    if any(other[2] != others[0][2] for other in others):
        raise ProcessGroupError("some ranks' models are in training mode and others in evaluation mode, as from_pretrained leaves them: in a step some would wait "
                                "for the others.\nCall model.train() on every rank.")
    for rank, other in enumerate(others):
        if other[3] != others[0][3]:
            name = next(iter(sorted({each[0] for each in set(other[3]) ^ set(others[0][3])})), "their order")
            raise ProcessGroupError(f"rank {rank} has built another model than rank 0: {name} differs.\nGive every rank the same configuration.")
    if not on_meta:
        _check_same_weights(parameters)


def _check_same_weights(parameters: dict[str, nn.Parameter]) -> None:
    names, sums = list(parameters), []
    for parameter in parameters.values():
        value = parameter.detach().double()
        sums.append(torch.stack([value.sum(), value.abs().sum()]))
    own = torch.stack(sums)
    least, most = own.clone(), own.clone()
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    different = ((least != most) & ~(least.isnan() & most.isnan())).any(dim=1).nonzero().flatten().tolist()
    if different:
        raise ProcessGroupError(f"the ranks hold different weights: {len(different)} of {len(names)} parameters, {names[different[0]]} the first.\n"
                                "Give every rank the same seed before the model is built, or load the same checkpoint.")


def _slice_experts(module: nn.Module, mesh: Mesh, config: MoEConfig) -> None:
    axis = ExpertAxis.of(mesh, module.num_experts, config)
    for name in EXPERT_PARAMETERS:
        parameter = getattr(module, name)
        own = parameter.detach().narrow(0, axis.begin, axis.local)
        own = torch.empty_like(own, device="meta") if parameter.is_meta else own.to(mesh.device_type, copy=True, memory_format=torch.contiguous_format)
        # Not by setattr: under accelerate's init_empty_weights that copies the parameter, as a plain tensor.
        module._parameters[name] = divided(axis, own, parameter.requires_grad)
    # The experts' own copy: another model that was built from the same configuration is not affected.
    module.config = copy.copy(module.config)
    module.config._experts_implementation = "conclave"
    module.conclave_axis = axis
    module.conclave_deltas = {}

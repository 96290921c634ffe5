"""conclave.transform: gives each rank its slice of every layer's experts, in a model of Transformers that stays what it is otherwise."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from conclave import activation_checkpointing
from conclave.balancing import apply_balancing, check_balancing
from conclave.errors import OrderError, ProcessGroupError, UnsupportedModelError
from conclave.experts import ExpertAxis, experts_forward
from conclave.mesh import Mesh, current_mesh
from conclave.moe_config import MoEConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")
# Families that pass tests/python/test_transform.py. Others may have the same experts and yet do something around them that was never compared.
SUPPORTED_MODEL_TYPES = ("mixtral", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "dots1", "exaone_moe", "flex_olmo", "glm4_moe", "granitemoe",
                         "minimax_m2")


@dataclass(frozen=True)
class Transformed:
    """What `transform` leaves at the model, as its attribute `conclave`."""

    mesh: Mesh
    config: MoEConfig
    experts: dict[str, nn.Module] = field(repr=False)  # by the module's name

    def expert_parameters(self) -> dict[int, nn.Parameter]:
        """The experts' parameters as they are now (fully_shard puts others in their place), by id."""
        return {id(parameter): parameter for module in self.experts.values() for name in EXPERT_PARAMETERS for parameter in [getattr(module, name)]}


def _transformed_experts_forward(self: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """The experts function that Transformers calls: hidden [T,H], index [T,K], weights [T,K] -> [T,H]."""
    return experts_forward(self.conclave_axis, hidden_states, top_k_index, top_k_weights, self.gate_up_proj, self.down_proj)


ALL_EXPERTS_FUNCTIONS.register("conclave", _transformed_experts_forward)


def transform(model: PreTrainedModel, config: MoEConfig | None = None) -> PreTrainedModel:
    """Give each rank its slice of every layer's experts and route tokens to them.

    The model is changed in place and returned. Expert parameters become DTensors on the expert axis, `gate_up_proj` [E,2I,H] and `down_proj` [E,H,I]
    sharded on dim 0, under their old names. Router, losses and names in checkpoints stay Transformers' own. Call it on all ranks, after
    `conclave.init` and before `fully_shard`, on a model whose parameters are all real (then every rank must hold the same ones) or all on the
    meta device (then `load_pretrained` or `materialize` follows).

    A transformed model's gradient is the mean over the ranks that share a parameter, as that of `fully_shard` and DistributedDataParallel: experts'
    gradients are already the mean over the expert axis after backward.

    `config`: None: what `conclave.init` was given, if it was.

    Raises:
        UnsupportedModelError: the model's family, activation or experts' layout is not supported.
        LayoutError: the number of experts is not a multiple of the expert degree.
        OrderError: the model is transformed or sharded already, or half on the meta device.
        ProcessGroupError: `conclave.init` was not called, or ranks hold different weights.
    """
    mesh = current_mesh()
    config = mesh.moe if config is None else config
    _check_order(model)
    experts = _find_experts(model)
    check_balancing(model, config)
    for module in experts.values():
        mesh.check_experts(module.num_experts)
    if not next(model.parameters()).is_meta:
        _check_same_weights(model, mesh)
    for module in experts.values():
        _slice_experts(module, mesh, config)
    apply_balancing(model, config, experts)
    model.conclave = Transformed(mesh, config, experts)
    activation_checkpointing.keep_communication(model)
    _refuse_plain_save(model)
    return model


def transformed(model: nn.Module, caller: str) -> Transformed:
    """What `transform` left at the model, or what is in a model of one's own with conclave.nn.MoE; refuses any other."""
    state = getattr(model, "conclave", None)
    if isinstance(state, Transformed):
        return state
    experts = {name: module for name, module in model.named_modules() if hasattr(module, "conclave_axis")}
    if not experts:
        raise OrderError(f"{caller} needs a transformed model, and this {type(model).__name__} is not.\nCall conclave.transform(model) before.")
    return Transformed(next(iter(experts.values())).conclave_axis.mesh, MoEConfig(), experts)


def load_metrics(model: nn.Module) -> dict[str, float | int]:
    """How evenly tokens fell on the experts since the last call, over all ranks. Collective; starts the count anew.

    `expert_imbalance`: max / mean of the choices over a layer's experts, averaged over layers; 1 is even. `expert_imbalance_max`: of the most
    uneven layer. `dead_experts`: experts, over all layers, that got no token.
    """
    state = transformed(model, "conclave.load_metrics")
    counts = torch.stack([module.conclave_axis.take_load() for module in state.experts.values()])
    dist.all_reduce(counts)
    counts = counts.double()
    mean = counts.mean(dim=1).clamp_min(1e-9)
    imbalance = counts.amax(dim=1) / mean
    return {"expert_imbalance": imbalance.mean().item(), "expert_imbalance_max": imbalance.max().item(), "dead_experts": int((counts == 0).sum().item())}


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


def _check_same_weights(model: nn.Module, mesh: Mesh) -> None:
    names, sums = [], []
    for name, parameter in model.named_parameters():
        names.append(name)
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
    axis = mesh.expert
    local = module.num_experts // axis.size()
    begin = axis.get_local_rank() * local
    for name in EXPERT_PARAMETERS:
        parameter = getattr(module, name)
        own = parameter.detach().narrow(0, begin, local)
        own = torch.empty_like(own, device="meta") if parameter.is_meta else own.to(mesh.device_type, copy=True, memory_format=torch.contiguous_format)
        sliced = DTensor.from_local(own, axis, [Shard(0)], run_check=False)
        setattr(module, name, nn.Parameter(sliced, requires_grad=parameter.requires_grad))
    # The experts' own copy: another model that was built from the same configuration is not affected.
    module.config = copy.copy(module.config)
    module.config._experts_implementation = "conclave"
    module.conclave_axis = ExpertAxis.of(mesh, module.num_experts, config)


def _refuse_plain_save(model: PreTrainedModel) -> None:
    def save_pretrained(*arguments: object, **options: object) -> None:
        raise OrderError("model.save_pretrained would write this rank's slice of the experts.\nUse conclave.save_pretrained(model, folder), on all ranks.")

    model.save_pretrained = save_pretrained

"""FullyShardedDataParallel by the arguments of torch.distributed.fsdp, and offload_wrapper: over both meshes, by FSDP2."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffload, CPUOffloadPolicy, MixedPrecision, MixedPrecisionPolicy, OffloadPolicy, ShardingStrategy, StateDictType
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, transformer_auto_wrap_policy

import conclave
from conclave.agreement import together
from conclave.errors import ConfigError, UnsupportedError
from conclave.mesh import current_mesh
from conclave.offloading import is_offloaded
from conclave.selection_bias import is_selection_bias
from conclave.smp.delayed_param import param_init_fn as delayed_init
from conclave.smp.session import PENDING_STATE

KEEPS_GATHERED = (ShardingStrategy.SHARD_GRAD_OP, ShardingStrategy._HYBRID_SHARD_ZERO2)
# Of these arguments FSDP2 has one value, or they are advice about when to gather: they change no result.
ADVICE = ("backward_prefetch", "forward_prefetch", "limit_all_gathers", "device_id", "use_orig_params", "post_param_init_fn")


class FullyShardedDataParallel:
    """Shards a transformed model in place and returns it, as `conclave.fully_shard` does: experts over the ranks that hold the same ones, each decoder
    layer and the rest over the dense mesh. How many ranks a parameter is divided over is `hybrid_shard_degree`'s to say, whatever the strategy.

    A model on the meta device gets its values: rank 0's after `transform(load_state_dict_from_rank0=True)`, else those of `DelayedParamIniter`.

    Raises:
        UnsupportedError: an argument that cannot be honoured; on all ranks.
    """

    def __new__(cls, module: nn.Module, process_group: Any = None, sharding_strategy: ShardingStrategy | None = None,
                cpu_offload: CPUOffload | None = None, auto_wrap_policy: Any = None, *, mixed_precision: MixedPrecision | None = None,
                param_init_fn: Any = None, sync_module_states: bool = False, **others: Any) -> nn.Module:
        together(lambda: _check(process_group, sharding_strategy, auto_wrap_policy, mixed_precision, param_init_fn, others))
        offload = CPUOffloadPolicy() if cpu_offload is not None and cpu_offload.offload_params else OffloadPolicy()
        model = conclave.fully_shard(module, mp_policy=_policy_of(mixed_precision), offload_policy=offload,
                                     reshard_after_forward=sharding_strategy not in KEEPS_GATHERED)
        pending = model.__dict__.pop(PENDING_STATE, None)
        if pending is not None:
            conclave.load_state_dict_from_rank0(model, pending or None)
        elif param_init_fn is delayed_init and any(parameter.is_meta for parameter in model.parameters()):
            conclave.materialize(model)
        if mixed_precision is not None and mixed_precision.buffer_dtype is not None:
            _cast_buffers(model, mixed_precision.buffer_dtype)
        model.process_group = current_mesh().dense["shard"].get_group()
        return model

    @staticmethod
    def state_dict_type(module: nn.Module, state_dict_type: StateDictType, *arguments: Any, **options: Any) -> AbstractContextManager[None]:
        """`model.state_dict()` gives this rank's parts in any case, as DTensors that torch.distributed.checkpoint saves and loads at any layout."""
        if state_dict_type == StateDictType.FULL_STATE_DICT:
            raise UnsupportedError("StateDictType.FULL_STATE_DICT gathers the whole model on one rank.\n"
                                   "Use conclave.save_pretrained(model, folder): an ordinary Hugging Face folder, written by all ranks.")
        return nullcontext()

    @staticmethod
    def optim_state_dict(model: nn.Module, optim: torch.optim.Optimizer, *arguments: Any, **options: Any) -> dict[str, Any]:
        """By the parameters' names, for torch.distributed.checkpoint; `conclave.load_state_dict` takes it back."""
        return conclave.state_dict(model, optim)["optimizer"]


def _check(process_group: Any, strategy: Any, policy: Any, precision: Any, init: Any, others: dict[str, Any]) -> None:
    mesh = current_mesh()
    if process_group is not None:
        raise UnsupportedError("process_group is given, but two meshes lie over the ranks.\nLeave it out: tsm.init has said who divides what.")
    if strategy is ShardingStrategy.NO_SHARD and mesh.dense["shard"].size() > 1:
        raise ConfigError(f"sharding_strategy is NO_SHARD, but parameters are divided over {mesh.dense['shard'].size()} ranks.\n"
                          "Set hybrid_shard_degree to 1 and expert_parallel_degree to 1, or leave the strategy out.")
    function = getattr(policy, "func", policy)
    if policy is not None and function is not transformer_auto_wrap_policy and not isinstance(policy, ModuleWrapPolicy):
        raise UnsupportedError(f"auto_wrap_policy is {getattr(function, '__name__', function)}, but a unit is a decoder layer.\n"
                               "Use transformer_auto_wrap_policy, or leave it out.")
    if precision is not None and precision.keep_low_precision_grads:
        raise UnsupportedError("mixed_precision.keep_low_precision_grads is True, but gradients have their parameter's dtype.\nLeave it out.")
    if init is not None and init is not delayed_init:
        raise UnsupportedError("param_init_fn is a function of the script's, but initial values are a function of seed, name and place.\n"
                               "Give DelayedParamIniter(model).get_param_init_fn(), or load weights: conclave.load_pretrained(model, folder).")
    for name, value in others.items():
        if name not in ADVICE and value is not None:
            raise UnsupportedError(f"{name} is an argument of FullyShardedDataParallel that cannot be honoured over two meshes.\n"
                                   "Leave it out, or shard by hand (docs/python.md).")


def _policy_of(precision: MixedPrecision | None) -> MixedPrecisionPolicy | None:
    return None if precision is None else MixedPrecisionPolicy(param_dtype=precision.param_dtype, reduce_dtype=precision.reduce_dtype)


def _cast_buffers(model: nn.Module, dtype: torch.dtype) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point() and not is_selection_bias(name):
                module._buffers[name] = buffer.to(dtype)


def offload_wrapper(model: nn.Module) -> nn.Module:
    """torch.distributed.algorithms' offload_wrapper as SMP replaces it: `activation_loading_horizon` layers at most are on the device. The model itself is
    returned, under its own names. `gradient_checkpointing_enable` may have done it already, as the dictionary said."""
    if is_offloaded(model):
        return model
    return conclave.offload_activations(model, current_mesh().activation_loading_horizon)

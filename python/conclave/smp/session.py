"""`init`, `state` and `transform` as SMP calls them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from os import PathLike
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

import conclave
from conclave.agreement import together
from conclave.errors import ConfigError, OrderError, UnsupportedError
from conclave.mesh import Mesh, current_mesh

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAUNCHER_PARAMETERS = "SM_HP_MP_PARAMETERS"  # where SMP's launcher leaves its dictionary, as JSON
PENDING_STATE = "_conclave_state_of_rank0"  # of a model: rank 0's weights that `FullyShardedDataParallel` hands out; {} on the others


def init(config: Mapping[str, Any] | str | PathLike[str] | None = None) -> None:
    """torch.sagemaker.init: SMP's dictionary, or the path of a JSON file with it. None: what the launcher left in SM_HP_MP_PARAMETERS; else every default.

    SMP's default of `sm_activation_offloading` is true and has no effect until `offload_wrapper`: so here.
    """
    if config is None and (text := os.environ.get(LAUNCHER_PARAMETERS)):
        try:
            config = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{LAUNCHER_PARAMETERS} holds no JSON: {error}.\nGive the dictionary to init.") from None
    conclave.init(config)


class _State:
    """torch.sagemaker.state, as far as Conclave's mesh has the same."""

    tensor_parallel_degree = context_parallel_degree = 1
    tp_size = cp_size = 1
    tp_rank = cp_rank = 0

    @property
    def _mesh(self) -> Mesh:
        return current_mesh()

    @property
    def expert_parallel_degree(self) -> int:
        return self._mesh.expert_parallel_degree

    @property
    def hybrid_shard_degree(self) -> int:
        """With 0 resolved: the ranks that divide the same experts among them."""
        return self._mesh.experts["expert_shard"].size()

    @property
    def sm_activation_offloading(self) -> bool:
        return self._mesh.activation_offloading

    @property
    def activation_loading_horizon(self) -> int:
        return self._mesh.activation_loading_horizon

    @property
    def random_seed(self) -> int:
        return self._mesh.seed

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        return self._mesh.world_size

    @property
    def ep_rank(self) -> int:
        return self._mesh.expert.get_local_rank()

    @property
    def ep_size(self) -> int:
        return self._mesh.expert.size()

    @property
    def ep_process_group(self) -> dist.ProcessGroup:
        return self._mesh.expert.get_group()

    @property
    def world_process_group(self) -> dist.ProcessGroup:
        return dist.group.WORLD

    @property
    def ranker(self) -> SimpleNamespace:
        """`get_rep_rank(rank)`: which of the replicas a rank belongs to."""
        shard = self._mesh.dense["shard"].size()
        return SimpleNamespace(get_rep_rank=lambda rank: rank // shard)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = sorted(key for key in dir(type(self)) if not key.startswith("_"))
        raise UnsupportedError(f"tsm.state.{name} is not known here.\nThere are {', '.join(known)}.")


state = _State()


def transform(model: PreTrainedModel, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
              config: conclave.MoEConfig | Mapping[str, Any] | None = None, load_state_dict_from_rank0: bool = False, cp_comm_type: str = "p2p",
              ) -> PreTrainedModel:
    """torch.sagemaker.transform. `config`: None: SMP's defaults (`conclave.smp.MoEConfig()`).

    `load_state_dict_from_rank0`: rank 0 has the weights, the others have the model on the meta device or with any weights. From here on all have it on
    the meta device, in rank 0's mode (evaluation after from_pretrained); `FullyShardedDataParallel` hands out rank 0's weights, one tensor at a time, each rank keeping its parts. `cp_comm_type`: of context
    parallelism, whose degree is 1.

    Raises:
        ConfigError, UnsupportedError, OrderError and what conclave.transform raises; on all ranks.
    """
    from conclave.smp.moe.moe_config import MoEConfig

    mesh = together(current_mesh) if dist.is_initialized() else current_mesh()

    def check() -> conclave.MoEConfig:
        if cp_comm_type not in ("p2p", "all_gather"):
            raise ConfigError(f"cp_comm_type is {cp_comm_type!r}.\nUse 'p2p' or 'all_gather'; with a context_parallel_degree of 1 they are the same.")
        if device is not None and torch.device(device).type not in (mesh.device_type, "meta"):
            raise ConfigError(f"device is {device}, but the ranks compute on {mesh.device_type}.\nLeave it out.")
        if load_state_dict_from_rank0 and dist.get_rank() == 0 and any(parameter.is_meta for parameter in model.parameters()):
            raise OrderError("load_state_dict_from_rank0 is True, but rank 0 has parameters on the meta device.\n"
                             "Load the weights there: from_pretrained(folder) on rank 0, the meta device on the others.")
        return MoEConfig() if config is None else MoEConfig(**config) if isinstance(config, Mapping) else config

    config = together(check)
    if dtype is not None:
        model.to(dtype)
    if load_state_dict_from_rank0:
        weights = dict(model.state_dict(keep_vars=False)) if dist.get_rank() == 0 else {}
        _to_meta(model)
        mode = [model.training]
        dist.broadcast_object_list(mode, src=0)
        model.train(mode[0])
    transformed = conclave.transform(model, config)
    if load_state_dict_from_rank0:
        transformed.__dict__[PENDING_STATE] = weights
    return transformed


def _to_meta(model: nn.Module) -> None:
    """Its parameters; tied ones stay tied. Buffers too, which are computed anew when the parameters come back."""
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                if id(parameter) not in known:
                    known[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
                module._parameters[name] = known[id(parameter)]

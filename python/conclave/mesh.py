"""conclave.init: the ranks of the process group as one mesh with two views, as DeviceMeshes that PyTorch understands."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from conclave._library import call_checked, operators
from conclave.agreement import together
from conclave.errors import ConfigError, LayoutError, ProcessGroupError, UnsupportedError
from conclave.moe_config import MoEConfig, yaml_of
from conclave.smp_dictionary import unwrapped, warn_of_cache_flushes

# What a configuration may give here. The other keys of a job belong to the program.
_USED = {"parallel.expert_parallel_degree", "parallel.hybrid_shard_degree", "parallel.tensor_parallel_degree", "parallel.context_parallel_degree",
         "parallel.random_seed", "run.seed", "parallel.sm_activation_offloading", "memory.sm_activation_offloading", "memory.activation_offloading",
         "parallel.activation_loading_horizon", "memory.activation_loading_horizon"}
_OFFLOADING = ("parallel.sm_activation_offloading", "memory.sm_activation_offloading", "memory.activation_offloading")


@dataclass(frozen=True)
class Mesh:
    """One mesh of ranks, two views.

    Attributes:
        dense: axes ("replica", "shard"): the ranks that hold copies of a dense parameter's shard, and those that divide it.
        experts: axes ("expert_replica", "expert_shard", "expert"): the expert axis lies over adjacent ranks.
        seed: of initial values.
        spans_hosts: whether ranks that divide experts among them lie on more than one host, in any of the groups.
        activation_offloading: whether what `gradient_checkpointing_enable` keeps leaves the device, `activation_loading_horizon` layers at most being there.
        warns_of_cache_flushes: whether a warning says that CUDA's allocator has given memory back and asked for it again.
    """

    dense: DeviceMesh
    experts: DeviceMesh
    expert_parallel_degree: int
    hybrid_shard_degree: int
    seed: int
    moe: MoEConfig
    spans_hosts: bool
    activation_offloading: bool = False
    activation_loading_horizon: int = 2
    warns_of_cache_flushes: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Mesh:
        """Ranks are not copied with a model."""
        return self

    @property
    def expert(self) -> DeviceMesh:
        """The expert axis: the ranks that divide the experts among them."""
        return self.experts["expert"]

    @property
    def dense_data(self) -> DeviceMesh:
        """What `fully_shard` takes for dense parameters."""
        return self.dense["shard"] if self.dense["replica"].size() == 1 else self.dense

    @property
    def expert_data(self) -> DeviceMesh:
        """What `fully_shard` takes for experts: the ranks that hold the same experts."""
        return self.experts["expert_shard"] if self.experts["expert_replica"].size() == 1 else self.experts["expert_replica", "expert_shard"]

    @property
    def world_size(self) -> int:
        return self.dense.size()

    @property
    def device_type(self) -> str:
        return self.dense.device_type

    def check_experts(self, experts: int) -> None:
        """Refuses a number of experts that the expert degree does not divide."""
        call_checked(operators().layout_degrees, self.world_size, self.expert_parallel_degree, self.hybrid_shard_degree, experts, error=LayoutError)


_current: Mesh | None = None


def init(config: Mapping[str, Any] | str | PathLike[str] | None = None) -> Mesh:
    """Validates a configuration and lays the mesh over the ranks of torch.distributed's process group. Collective over all ranks.

    `config`: a dictionary {"expert_parallel_degree": 2, "hybrid_shard_degree": 0}, SMP's dictionary as it is, a dictionary of sections ("parallel",
    "moe") as in a job file, or the path of a YAML or JSON file with one of them. None: every default. A later call lays a new mesh; models
    that were transformed before keep theirs.

    Raises:
        ProcessGroupError: there is no process group.
        ConfigError: an unknown key, a value that cannot be used, or ranks that give different ones.
        LayoutError: the degrees do not divide the ranks.
        UnsupportedError: a key or value that is the program's own.
    """
    global _current
    if not (dist.is_available() and dist.is_initialized()):
        raise ProcessGroupError("conclave.init needs a process group, and torch.distributed has none.\n"
                                "Start the script by torchrun and call torch.distributed.init_process_group() before.")
    config, smp = together(lambda: unwrapped(config))
    given, resolved, degrees = together(lambda: _resolve(config))
    hosts = _hosts_of_same(given)
    parallel = resolved["parallel"]
    device = "cuda" if torch.cuda.is_available() and "nccl" in str(dist.get_backend()) else "cpu"
    dense = init_device_mesh(device, (degrees[0], degrees[1]), mesh_dim_names=("replica", "shard"))
    experts = init_device_mesh(device, (degrees[2], degrees[3], degrees[4]), mesh_dim_names=("expert_replica", "expert_shard", "expert"))
    moe, degree = MoEConfig(**_moe_keys(given)), parallel["expert_parallel_degree"]
    spans_hosts = any(len(set(hosts[first : first + degree])) > 1 for first in range(0, len(hosts), degree))
    _current = Mesh(dense, experts, degree, parallel["hybrid_shard_degree"], resolved["run"]["seed"], moe, spans_hosts,
                    any(given.get(key) for key in _OFFLOADING), resolved["memory"]["activation_loading_horizon"], smp.fsdp_cache_flush_warnings)
    if smp.fsdp_cache_flush_warnings:
        warn_of_cache_flushes()
    return _current


def _resolve(config: Mapping[str, Any] | str | PathLike[str] | None) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    """(the keys as given, all of them with defaults, the degrees of the axes)."""
    given = _given_keys(config)
    _refuse_unused(given)
    resolved = yaml.safe_load(call_checked(operators().read_settings, _overrides(given)))
    MoEConfig(**_moe_keys(given))
    expert_degree, shard_degree = resolved["parallel"]["expert_parallel_degree"], resolved["parallel"]["hybrid_shard_degree"]
    # The model is not known yet: its experts are taken to suit.
    degrees = call_checked(operators().layout_degrees, dist.get_world_size(), expert_degree, shard_degree, expert_degree, error=LayoutError)
    return given, resolved, degrees


def _overrides(given: dict[str, Any]) -> list[str]:
    """Of all keys but those of the section `moe` that MoEConfig knows and checks itself. What is checkpointed, a script says elsewhere."""
    known = {f"moe.{name}" for name in MoEConfig.__dataclass_fields__}
    overrides = [f"{key}={yaml_of(value)}" for key, value in given.items() if key not in known]
    return [*overrides, *(["memory.activation_checkpointing=selective"] if any(given.get(key) for key in _OFFLOADING) else [])]


def _moe_keys(given: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("moe."): value for key, value in given.items() if key.startswith("moe.")}


def _hosts_of_same(given: dict[str, Any]) -> list[str]:
    """The host of each rank. Ranks that lay different meshes would wait for each other, and are refused."""
    ranks: list[tuple[dict[str, Any], str]] = [({}, "")] * dist.get_world_size()
    dist.all_gather_object(ranks, (given, _this_host()))
    others = [other for other, _ in ranks]
    for rank, other in enumerate(others):
        if other != others[0]:
            key = sorted(name for name in {*other, *others[0]} if other.get(name) != others[0].get(name))[0]
            raise ConfigError(f"{key} is {others[0].get(key)!r} on rank 0 and {other.get(key)!r} on rank {rank}, and one mesh lies over all ranks.\n"
                              "Give every rank the same configuration.")
    return [host for _, host in ranks]


def _this_host() -> str:
    """Hosts may share a name, and containers of one host a boot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


def current_mesh() -> Mesh:
    """The mesh of the last `conclave.init`."""
    if _current is None:
        raise ProcessGroupError("conclave.init was not called.\n"
                                "Call it once, after torch.distributed.init_process_group() and before the model is transformed.")
    return _current


def _given_keys(config: Mapping[str, Any] | str | PathLike[str] | None) -> dict[str, Any]:
    """{"section.key": value}; keys without a section are `parallel`'s, as SMP has them."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        path = Path(config)
        try:
            config = yaml.safe_load(path.read_text())  # JSON is YAML
        except OSError as error:
            raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}.\n"
                              "Give a dictionary or the path of a YAML or JSON file.") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"the configuration {path} is not YAML: {error}") from None
        if not isinstance(config, Mapping):
            raise ConfigError(f"the configuration {path} holds {type(config).__name__}, not keys with values.")
    given = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            given |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            given[f"parallel.{key}"] = value
    return given


def _refuse_unused(given: dict[str, Any]) -> None:
    moe = {f"moe.{name}" for name in MoEConfig.__dataclass_fields__}
    call_checked(operators().read_settings, _overrides(given))  # knows all keys, and says what was meant
    for key, value in given.items():
        if key not in _USED | moe:
            raise UnsupportedError(f"{key} is a key of the program, and conclave.init would not use it.\n"
                                   f"Leave it out, or run the whole job by the program: conclave.Job(path).train().")

"""SMP's configuration dictionary in the forms that its launcher takes, and the two of its keys that no job has."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from conclave.errors import ConfigError


@dataclass(frozen=True)
class SmpOptions:
    """Attributes:
        fsdp_cache_flush_warnings: whether to warn when CUDA's allocator had to give its cache back.
        allow_empty_shards: accepted; with FSDP2 a rank's shard may be empty in any case.
    """

    fsdp_cache_flush_warnings: bool = False
    allow_empty_shards: bool = False


def unwrapped(config: Any) -> tuple[Any, SmpOptions]:
    """The keys of a dictionary out of the launcher's {"smdistributed": {"modelparallel": {"enabled": true, "parameters": {...}}}}, and those that are
    SMP's alone. Anything else is returned as it is."""
    if not isinstance(config, Mapping):
        return config, SmpOptions()
    keys = dict(config)
    for outer in ("smdistributed", "modelparallel"):
        if outer in keys:
            if len(keys) > 1 or not isinstance(keys[outer], Mapping):
                raise ConfigError(f"{outer} must be the only key of its dictionary and hold another one.\nGive the dictionary that SMP's launcher takes, "
                                  "or what stands under its \"parameters\".")
            keys = dict(keys[outer])
    if isinstance(keys.get("parameters"), Mapping):
        if keys.get("enabled", True) is not True:
            raise ConfigError(f"modelparallel.enabled is {keys['enabled']!r}, so there is nothing to set up.\nUse true, or leave conclave.init out.")
        if other := sorted(set(keys) - {"enabled", "parameters"}):
            raise ConfigError(f"{other[0]} stands beside \"parameters\", and SMP knows \"enabled\" there only.\nLeave it out.")
        keys = dict(keys["parameters"])
    own = {field.name: keys.pop(field.name) for field in fields(SmpOptions) if field.name in keys}
    for name, value in own.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}, but must be true or false.")
    return keys, SmpOptions(**own)


@functools.cache
def warn_of_cache_flushes() -> None:
    """From now on, after each step of an optimizer. On the CPU there is no such cache."""
    if torch.cuda.is_available():
        seen = [0]

        def look(*arguments: Any) -> None:
            flushes = torch.cuda.memory_stats().get("num_alloc_retries", 0)
            if flushes > seen[0]:
                warnings.warn(f"CUDA's allocator has given its cache back {flushes - seen[0]} times in this step, which makes steps slow. Lower the batch "
                              "size, or let activations be checkpointed or offloaded.", RuntimeWarning, stacklevel=3)
            seen[0] = flushes

        register_optimizer_step_post_hook(look)

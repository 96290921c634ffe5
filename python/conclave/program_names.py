"""What a parameter is called, and where it lies, in the program's own checkpoints. The program's families say it; other models keep their own names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod

from torch import nn

from conclave._library import operators
from conclave.regions import stored_tensors


@dataclass(frozen=True)
class Place:
    """A parameter as rows `begin ...` of the program's tensor of `shape`."""

    name: str
    shape: tuple[int, ...]
    begin: int = 0  # the first of its elements


def config_text(model: nn.Module) -> str:
    """The model's config.json, as a checkpoint keeps it; empty: the model has none."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return ""
    kept = {**config.to_dict(), **model.conclave.given_config, "architectures": [type(model).__name__.removeprefix("FSDP")], "dtype": "float32"}
    return json.dumps({key: value for key, value in kept.items() if not key.startswith("_")}, indent=2)


def places_of(model: nn.Module) -> dict[str, Place]:
    """By the model's own names."""
    tensors = stored_tensors(model)
    known = {name: (Place(program_name, tuple(shape.tolist()), begin), count)
             for name, program_name, shape, begin, count in zip(*operators().program_names(config_text(model)), strict=True)}
    if all(name in known and known[name][1] == prod(tensor.shape) for name, tensor in tensors.items()):
        return {name: known[name][0] for name in tensors}
    return {name: Place(name, tuple(tensor.shape)) for name, tensor in tensors.items()}

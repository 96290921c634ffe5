"""Which part of a parameter a rank holds."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from conclave.selection_bias import is_selection_bias


@dataclass(frozen=True)
class Region:
    """A box in a tensor: `size[d]` elements from `offset[d]` on of each dim."""

    offset: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Region:
        """This rank's part of `tensor`; all of it when it is not a DTensor."""
        if not isinstance(tensor, DTensor):
            return cls((0,) * tensor.ndim, tuple(tensor.shape))
        size, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        return cls(tuple(offset), tuple(size))

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(begin, begin + size) for begin, size in zip(self.offset, self.size, strict=True))

    @property
    def is_empty(self) -> bool:
        return prod(self.size) == 0

    def runs(self, shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        """(first element, number of elements) of the stretches that lie together in a row-major tensor of `shape`, in order."""
        if self.is_empty:
            return
        whole = len(shape)  # from this dim on, the box is as wide as the tensor
        while whole > 0 and self.size[whole - 1] == shape[whole - 1]:
            whole -= 1
        inner = max(whole - 1, 0)
        stretch = prod(self.size[inner:])
        strides = [prod(shape[dim + 1:]) for dim in range(len(shape))]
        first = sum(offset * stride for offset, stride in zip(self.offset, strides, strict=True))
        for index in product(*(range(size) for size in self.size[:inner])):
            yield first + sum(i * stride for i, stride in zip(index, strides, strict=False)), stretch


def stored_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a folder of Transformers holds: parameters, tied ones once, and the buffers that belong to the model's state."""
    stored: dict[str, torch.Tensor] = dict(model.named_parameters())
    kept = model.state_dict(keep_vars=True)
    return stored | {name: buffer for name, buffer in model.named_buffers() if name in kept and not is_selection_bias(name)}


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of `tensor`, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def tied_names(model: nn.Module, wanted: Container[str]) -> dict[str, str]:
    """By the name that the model stores a tied parameter under, its other name."""
    pairs = getattr(model, "all_tied_weights_keys", {}).items()
    return {name: other for target, source in pairs for name, other in ((source, target), (target, source)) if name in wanted and other not in wanted}

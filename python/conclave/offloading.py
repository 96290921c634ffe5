"""Activation offloading: what layers keep for backward leaves the device after their forward pass, and returns ahead of their backward pass.

Where it goes is the engine's own: pinned host memory for CUDA, on a stream of its own; for the CPU scratch files, which have no name and vanish with the
process. With activation checkpointing a layer keeps its input alone.
"""

from __future__ import annotations

import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from transformers.modeling_layers import GradientCheckpointingLayer

from conclave._library import call_checked, operators
from conclave.agreement import together
from conclave.derived_class import stand_before
from conclave.errors import ConfigError, OrderError, UnsupportedError

LEAST_BYTES = 1 << 14  # a smaller tensor is not worth its copies


def offload_activations(model: nn.Module, horizon: int = 2, *, folder: str | PathLike[str] | None = None) -> nn.Module:
    """What the layers of `model` keep for backward leaves the device until shortly before it is needed; the same bits come back. Collective, if there is a
    process group; returns the model.

    Layers are the decoder layers of a model of Transformers, and modules under PyTorch's checkpoint_wrapper; in a model without any, its children. At most
    `horizon` layers' tensors are on the device besides those of the layer that computes. With `gradient_checkpointing_enable()` a layer keeps its input,
    else all that backward needs. Parameters stay, and so does what all layers share (masks, rotary tables), and with `conclave.checkpoint_context` the
    rows that arrived. `folder`: of a CPU's scratch files; None: the system's for temporary files.

    Raises:
        ConfigError: a horizon below 1; a folder that cannot be written.
        OrderError: the model's activations are offloaded already.
    """
    offloading = ActivationOffloading(horizon, folder)
    if dist.is_initialized():
        together(lambda: offloading.check(model))
    else:
        offloading.check(model)
    layers = layers_of(model)
    for place, layer in enumerate(layers):
        stand_before(layer, OffloadedLayer)
        layer.conclave_offloading = offloading, len(layers) - 1 - place
    return model


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The modules whose kept tensors leave together."""
    kinds = (GradientCheckpointingLayer, CheckpointWrapper)
    inside = {id(inner) for module in model.modules() if isinstance(module, CheckpointWrapper) for inner in module.modules() if inner is not module}
    found = [module for module in model.modules() if isinstance(module, kinds) and id(module) not in inside]
    return found or list(model.children())


def is_offloaded(model: nn.Module) -> bool:
    return any(isinstance(module, OffloadedLayer) for module in model.modules())


class OffloadedLayer:
    """Stands before a layer's own class."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        offloading, layers_after = self.conclave_offloading
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return super().__call__(*arguments, **options)
        with offloading.layer(self, [*arguments, *options.values()], layers_after):
            return super().__call__(*arguments, **options)


class ActivationOffloading:
    """Offloads what is kept inside of its `layer()` contexts, one after the other:

        offloading = conclave.ActivationOffloading(horizon=2)
        for block in blocks:
            with offloading.layer(block):
                hidden = block(hidden)
    """

    def __init__(self, horizon: int = 2, folder: str | PathLike[str] | None = None) -> None:
        if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
            raise ConfigError(f"horizon is {horizon!r}, but at least 1 layer's activations are on the device.\nUse 2, or a larger number.")
        self.horizon = horizon
        self.folder = str(folder or tempfile.gettempdir())
        self._leaving: list[_Kept] = []  # the newest layers, at most `horizon`
        self._newest: weakref.ref[_Kept] | None = None
        self._free: dict[int, list[Any]] = {}  # slots by their bytes

    def __deepcopy__(self, memo: dict[int, Any]) -> ActivationOffloading:
        return ActivationOffloading(self.horizon, self.folder)

    def check(self, model: nn.Module) -> None:
        layers = layers_of(model)
        if is_offloaded(model):
            raise OrderError("the model's activations are offloaded already.\nCall conclave.offload_activations once.")
        if not layers:
            raise UnsupportedError(f"{type(model).__name__} has no layers whose activations could leave the device one after the other.\n"
                                   "Use conclave.ActivationOffloading, with a context around each part.")
        if not any(parameter.is_cuda for parameter in model.parameters()):
            self._new_slot(torch.device("cpu"), LEAST_BYTES)

    @contextmanager
    def layer(self, module: nn.Module | None = None, shared: Any = (), layers_after: int | None = None) -> Iterator[None]:
        """What is kept for backward inside leaves the device at the end.

        Args:
            module: its parameters stay, whatever keeps them.
            shared: of these tensors, those without a gradient stay: other layers keep them too.
            layers_after: that follow before backward; None: not known. The last `horizon` ones never leave.
        """
        staying = {tensor.data_ptr() for tensor in _tensors_in(shared) if not tensor.requires_grad}
        kept = _Kept(self, self._newest)
        with torch.autograd.graph.saved_tensors_hooks(kept.packer(module, staying), _unpack):
            yield
        if not kept.entries:
            return
        self._newest = weakref.ref(kept)
        if layers_after is None or layers_after >= self.horizon:
            kept.leave()
        self._leaving.append(kept)
        while len(self._leaving) > self.horizon:
            self._leaving.pop(0).finish_leaving()

    def take_slot(self, tensor: torch.Tensor) -> Any | None:
        """None, with a warning, when there is no room: then the tensor stays. A rank that raised in the middle of a step would leave the others waiting."""
        free = self._free.setdefault(tensor.nbytes, [])
        try:
            return free.pop() if free else self._new_slot(tensor.device, tensor.nbytes)
        except ConfigError as error:
            warnings.warn(f"Activations stay on the device: {error}", RuntimeWarning, stacklevel=4)
            return None

    def give_slot(self, slot: Any, bytes_: int) -> None:
        self._free.setdefault(bytes_, []).append(slot)

    def _new_slot(self, device: torch.device, bytes_: int) -> Any:
        operators()
        return call_checked(torch.classes.conclave.OffloadSlot, self.folder, device, bytes_)


class _Kept:
    """What one layer keeps. Alive as long as autograd holds any of it."""

    def __init__(self, offloading: ActivationOffloading, before: weakref.ref[_Kept] | None) -> None:
        self.offloading = offloading
        self.before = before  # the layer that computed before, whose backward follows
        # Autograd holds the entries; to hold them here, too, would be a circle that only Python's collector ends.
        self.entries: weakref.WeakValueDictionary[tuple, _Entry] = weakref.WeakValueDictionary()

    def packer(self, module: nn.Module | None, staying: set[int]) -> Callable[[torch.Tensor], Any]:
        def pack(tensor: torch.Tensor) -> Any:
            if tensor.nbytes < LEAST_BYTES or tensor.data_ptr() in staying or not _is_dense(tensor) or type(tensor) not in (torch.Tensor, nn.Parameter):
                return tensor
            storage = tensor.untyped_storage().data_ptr()
            # Asked now: FSDP has other parameters here than around the layer.
            if module is not None and any(storage == parameter.untyped_storage().data_ptr() for parameter in map(_local, module.parameters())):
                return tensor
            key = (tensor.data_ptr(), tensor._version, tensor.dtype, tensor.shape, tensor.stride())
            entry = self.entries.get(key)
            if entry is None:
                entry = self.entries[key] = _Entry(self, tensor)
            return entry

        return pack

    def leave(self) -> None:
        for entry in list(self.entries.values()):
            entry.leave()

    def finish_leaving(self) -> None:
        for entry in list(self.entries.values()):
            entry.finish_leaving()

    def return_early(self) -> None:
        """Starts the return of the layers whose backward comes next, as far as the horizon allows."""
        kept = self
        for _ in range(self.offloading.horizon - 1):
            kept = kept.before() if kept is not None and kept.before is not None else None
            for entry in list(kept.entries.values()) if kept is not None else ():
                entry.start_return()


class _Entry:
    """A tensor: on the device, or in a slot."""

    def __init__(self, kept: _Kept, tensor: torch.Tensor) -> None:
        self.kept = kept
        self.tensor: torch.Tensor | None = tensor
        self._version = tensor._version
        self._described = tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.nbytes
        self._slot: Any = None
        self._is_written = False

    def leave(self) -> None:
        if self.tensor is None or self.tensor._version != self._version:  # changed in place since: autograd knows what to say
            return
        self._slot = self.kept.offloading.take_slot(self.tensor)
        if self._slot is not None:
            self._slot.write(_flat(self.tensor))

    def finish_leaving(self) -> None:
        if self._slot is not None and not self._is_written:
            self._slot.wait()
            self._is_written, self.tensor = True, None

    def start_return(self) -> None:
        if self.tensor is None:
            shape, stride, dtype, device, _ = self._described
            self.tensor = torch.empty_strided(shape, stride, dtype=dtype, device=device)
            self._slot.read(_flat(self.tensor))

    def take(self) -> torch.Tensor:
        self.start_return()
        if self._is_written:
            self._slot.wait()
        tensor = self.tensor
        if self._is_written:
            self.tensor = None  # a graph that is kept reads it again
        return tensor

    def __del__(self) -> None:
        if self._slot is not None:
            self._slot.wait()
            self.kept.offloading.give_slot(self._slot, self._described[4])


def _unpack(packed: Any) -> torch.Tensor:
    if isinstance(packed, torch.Tensor):
        return packed
    tensor = packed.take()
    packed.kept.return_early()
    return tensor


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in _tensors_in(each)]
    return []


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements lie together in some order of its dims."""
    step = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != step:
            return False
        step *= size
    return tensor.layout == torch.strided


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().as_strided((tensor.numel(),), (1,))

"""conclave.accelerate: the engine's parts in the places of Transformers' own, each by a switch of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn
from torch.distributed.fsdp import FSDPModule

from conclave._library import operators
from conclave.accelerated_attention import accelerate_attention, accelerate_rotary
from conclave.accelerated_layers import accelerate_linear, accelerate_loss, accelerate_norms
from conclave.adapters import base_of
from conclave.errors import UnsupportedError, UnsupportedModelError
from conclave.link_collectives import gather_by_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Acceleration:
    """What `accelerate` leaves at the model, as its attribute `conclave_acceleration`: in how many places each part stands. None: refused by the script."""

    attention: int | None
    rotary: int | None
    norms: int | None
    loss: int | None
    linear: int | None
    gathers: bool | None
    memory: bool | None


def accelerate(model: PreTrainedModel, *, attention: bool | None = None, rotary: bool | None = None, norms: bool | None = None, loss: bool | None = None,
               linear: bool | None = None, gathers: bool | None = None, memory: bool | None = None) -> PreTrainedModel:
    """Have the engine compute what Transformers and PyTorch are slow at on CPUs. The model is changed in place and returned.

    It computes the same: each part agrees with the one it replaces but for rounding. None (the default) takes a part wherever it fits, True refuses a model
    that it does not fit, False leaves it out. Call it on all ranks, before or after `transform`; before `conclave.fully_shard`, or after PyTorch's own
    `fully_shard`. `conclave.AdamW` belongs to it: an optimizer is the script's to make.

    `attention`: causal attention over grouped heads, also with a sliding window, as `attn_implementation="conclave"`. What it cannot honour (padding, packed
    sequences, dropout) goes to PyTorch's `sdpa`, with a warning in training.
    `rotary`: rotary position embeddings that turn halves of a head.
    `norms`: RMSNorm.
    `loss`: the cross-entropy of `model(..., labels=...)`, without a copy of the logits in fp32.
    `linear`: `nn.Linear`, where the engine's products are faster than MKL's: on processors with AVX512.
    `gathers`: FSDP2's gathers and reductions between ranks of one host, which read each other's memory; in fp32 and bf16.
    `memory`: memory of large tensors stays with this process for the next ones; the system zeroes every page that it gives anew. From now on, and for the
    whole process.

    Raises:
        UnsupportedError: the model is on a GPU, where PyTorch's own kernels are the fast ones.
        UnsupportedModelError: a part is asked for that the model has no place for; the message says why.
    """
    base = base_of(model)
    if any(parameter.is_cuda for parameter in base.parameters()):
        raise UnsupportedError("conclave.accelerate is for CPUs, and this model is on a GPU, where PyTorch's own kernels are the fast ones.\n"
                               "Leave the call out.")
    operators()
    counts = {name: _place(name, asked, base, put)
              for name, asked, put in (("attention", attention, accelerate_attention), ("rotary", rotary, accelerate_rotary),
                                       ("norms", norms, accelerate_norms), ("loss", loss, accelerate_loss), ("linear", linear, accelerate_linear))}
    if memory is not False:
        operators().keep_large_blocks()
    model.conclave_acceleration = base.conclave_acceleration = Acceleration(
        **counts, gathers=None if gathers is False else True, memory=None if memory is False else True)
    if any(isinstance(module, FSDPModule) for module in base.modules()):
        accelerate_gathers(base)
    return model


def accelerate_gathers(model: nn.Module) -> None:
    """To be called when the model is sharded: does what `accelerate` was told of gathers, if it was called."""
    acceleration = getattr(model, "conclave_acceleration", None)
    if acceleration is not None and acceleration.gathers:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                gather_by_memory(module)


def _place(name: str, asked: bool | None, model: nn.Module, put: Callable[[nn.Module], int | str]) -> int | None:
    """`put` returns the number of places, or why there is none."""
    if asked is False:
        return None
    found = put(model)
    if isinstance(found, int):
        return found
    if asked:
        raise UnsupportedModelError(f"accelerate was asked for {name}=True, but {found}.\nLeave {name} out, or give False.")
    return 0

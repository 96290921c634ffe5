"""Activation checkpointing that repeats arithmetic and never communication: dispatch plans, dispatched rows and the experts' sums are kept."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from torch.utils.checkpoint import create_selective_checkpoint_contexts

from conclave._library import operators
from conclave.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_repeats = ContextVar("conclave_repeats_arithmetic", default=False)


def repeats_arithmetic() -> bool:
    """Whether what is computed now is under `checkpoint_context`: then what experts can compute once more is not kept."""
    return _repeats.get()


@contextmanager
def _keeping_communication(selective: AbstractContextManager[Any]) -> Iterator[None]:
    token = _repeats.set(True)
    try:
        with selective:
            yield
    finally:
        _repeats.reset(token)


def checkpoint_context() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The `context_fn` for torch.utils.checkpoint.checkpoint(..., use_reentrant=False): recomputation finds what other ranks sent.

    Transformers' `gradient_checkpointing_enable` on a transformed model uses it by itself.
    """
    ops = operators()
    forward, again = create_selective_checkpoint_contexts([ops.sinkhorn_choice.default, ops.routed_experts_forward.default])
    return _keeping_communication(forward), _keeping_communication(again)


def keep_communication(model: PreTrainedModel) -> None:
    """Makes the model's own `gradient_checkpointing_enable` use `checkpoint_context` unless another `context_fn` is given."""
    enable = model.gradient_checkpointing_enable

    @functools.wraps(enable)
    def gradient_checkpointing_enable(gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        chosen = {"use_reentrant": False, "context_fn": checkpoint_context, **(gradient_checkpointing_kwargs or {})}
        if chosen["use_reentrant"]:
            raise UnsupportedError("use_reentrant is True, and reentrant checkpointing would dispatch every token once more in backward.\n"
                                   "Use {'use_reentrant': False}.")
        enable(gradient_checkpointing_kwargs=chosen, **options)

    model.gradient_checkpointing_enable = gradient_checkpointing_enable

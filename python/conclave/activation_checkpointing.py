"""Activation checkpointing that repeats arithmetic and never communication: dispatch plans, dispatched rows and the experts' sums are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from torch.utils.checkpoint import create_selective_checkpoint_contexts

from conclave._library import operators

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
    forward, again = create_selective_checkpoint_contexts([ops.choose_experts.default, ops.routed_experts_forward.default])
    return _keeping_communication(forward), _keeping_communication(again)

"""Activation checkpointing that repeats arithmetic and never communication: dispatch plans, dispatched rows and combined outputs are kept."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch.utils.checkpoint import create_selective_checkpoint_contexts

from conclave._library import operators
from conclave.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def checkpoint_context() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The `context_fn` for torch.utils.checkpoint.checkpoint(..., use_reentrant=False): recomputation finds what other ranks sent.

    Transformers' `gradient_checkpointing_enable` on a transformed model uses it by itself.
    """
    ops = operators()
    return create_selective_checkpoint_contexts([ops.sinkhorn_choice.default, ops.plan_dispatch.default, ops.dispatch.default, ops.combine.default])


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

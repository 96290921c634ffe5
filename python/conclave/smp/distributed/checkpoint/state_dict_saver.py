"""torch.sagemaker.distributed.checkpoint.state_dict_saver: of state dictionaries that a script has put together."""

from __future__ import annotations

from os import PathLike
from typing import Any

from conclave.errors import UnsupportedError
from conclave.smp.checkpoint import async_save_state, maybe_finalize_async_calls, save_state

__all__ = ["async_save", "maybe_finalize_async_calls", "save"]


def save(state_dict: dict[str, Any], *, checkpoint_id: str | PathLike[str], **others: Any) -> None:
    """Of all ranks together; waits for saves under way."""
    refuse_others(others)
    maybe_finalize_async_calls(blocking=True)
    save_state(state_dict, checkpoint_id)


def async_save(state_dict: dict[str, Any], *, checkpoint_id: str | PathLike[str], **others: Any) -> None:
    """Returns while the files are written."""
    refuse_others(others)
    maybe_finalize_async_calls(blocking=True)
    async_save_state(state_dict, checkpoint_id)


def refuse_others(others: dict[str, Any]) -> None:
    """Which ranks take part and who plans is settled: the same checkpoint loads at any layout."""
    for name, value in others.items():
        if name not in ("process_group", "coordinator_rank", "force_check_all_plans", "wait_error_handling", "check_keys_matched") and value is not None:
            raise UnsupportedError(f"{name} is given, but a checkpoint is written by all ranks to a folder of the file system.\nLeave it out.")

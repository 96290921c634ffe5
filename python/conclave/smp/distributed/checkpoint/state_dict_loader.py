"""torch.sagemaker.distributed.checkpoint.state_dict_loader."""

from __future__ import annotations

from os import PathLike
from typing import Any

from conclave.smp.checkpoint import load_state
from conclave.smp.distributed.checkpoint.state_dict_saver import refuse_others

__all__ = ["load"]


def load(state_dict: dict[str, Any], *, checkpoint_id: str | PathLike[str], **others: Any) -> None:
    """Fills `state_dict` in place, at any layout."""
    refuse_others(others)
    load_state(state_dict, checkpoint_id)

"""Checkpoints by SMP's calls: PyTorch's distributed checkpoints, which load at any expert degree, shard degree and number of ranks.

    tsm.checkpoint.save(model, optimizer, folder, step=100)     # on all ranks; async_save returns while files are written
    tsm.checkpoint.load(model, optimizer, folder)               # returns {"step": 100}
"""

from __future__ import annotations

import functools
import io
from concurrent.futures import Future
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

import conclave
from conclave.agreement import together
from conclave.errors import CheckpointError

_USER_CONTENT = "user_content"
_under_way: list[Future] = []


def save(model: nn.Module, optimizer: torch.optim.Optimizer | None, folder: str | PathLike[str], **user_content: Any) -> None:
    """Model, optimizer and what else a script wants back (numbers, texts, a schedule's state). Collective; waits for a save under way."""
    maybe_finalize_async_calls(blocking=True)
    save_state({**conclave.state_dict(model, optimizer), _USER_CONTENT: _packed(user_content)}, folder)


def async_save(model: nn.Module, optimizer: torch.optim.Optimizer | None, folder: str | PathLike[str], **user_content: Any) -> None:
    """The same, written while the script goes on: `maybe_finalize_async_calls` tells when it is whole. Collective."""
    maybe_finalize_async_calls(blocking=True)
    async_save_state({**conclave.state_dict(model, optimizer), _USER_CONTENT: _packed(user_content)}, folder)


def load(model: nn.Module, optimizer: torch.optim.Optimizer | None, folder: str | PathLike[str]) -> dict[str, Any]:
    """Into a model that has memory; returns the user content. Collective."""
    maybe_finalize_async_calls(blocking=True)
    together(lambda: _check_folder(Path(folder)))
    stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata.get(_USER_CONTENT)
    content = {} if stored is None else {_USER_CONTENT: torch.empty(stored.size, dtype=torch.uint8)}
    state = {**conclave.state_dict(model, optimizer), **content}
    load_state(state, folder)
    conclave.load_state_dict(model, state, optimizer)
    return torch.load(io.BytesIO(state[_USER_CONTENT].numpy().tobytes()), weights_only=True) if content else {}


def _packed(user_content: dict[str, Any]) -> torch.Tensor:
    """As bytes: PyTorch's checkpoints would take a dictionary apart."""
    file = io.BytesIO()
    torch.save(user_content, file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def save_state(state: dict[str, Any], folder: str | PathLike[str]) -> None:
    """A state dictionary of the script's own."""
    _refused(lambda: dcp.save(state, checkpoint_id=folder, process_group=_group()))


def async_save_state(state: dict[str, Any], folder: str | PathLike[str]) -> None:
    _under_way.append(_refused(lambda: dcp.async_save(state, checkpoint_id=folder, process_group=_group())))


def load_state(state: dict[str, Any], folder: str | PathLike[str]) -> None:
    """Fills a state dictionary in place."""
    together(lambda: _check_folder(Path(folder)))
    _refused(lambda: dcp.load(state, checkpoint_id=folder, process_group=_group()))


def maybe_finalize_async_calls(blocking: bool = False, process_group: dist.ProcessGroup | None = None) -> int:
    """Ends saves that are whole, on all ranks, and returns how many are still being written. `blocking`: waits for them."""
    while _under_way:
        done = [_under_way[0].done()]
        if not blocking:
            everywhere: list[bool] = [False] * dist.get_world_size()
            dist.all_gather_object(everywhere, done[0], group=_group())
            if not all(everywhere):
                break
        _refused(_under_way.pop(0).result)
    return len(_under_way)


@functools.cache
def _group_of(world: dist.ProcessGroup) -> dist.ProcessGroup:
    return dist.new_group(backend="gloo")


def _group() -> dist.ProcessGroup:
    """Apart from the script's, so that a save in the background does not get among its collectives."""
    return _group_of(dist.group.WORLD)


def _check_folder(folder: Path) -> None:
    if not (folder / ".metadata").is_file():
        raise CheckpointError(f"{folder} holds no distributed checkpoint: there is no .metadata in it.\nGive the folder that a save was given.")


def _refused(work: Any) -> Any:
    """PyTorch tells all ranks when one has failed, by an exception of its own."""
    try:
        return work()
    except dcp.CheckpointException as error:
        raise CheckpointError("; ".join(f"rank {rank}: {failure[0] if isinstance(failure, tuple) else failure}" for rank, failure in error.failures.items())) from None

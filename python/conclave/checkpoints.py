"""The program's own checkpoints from a script: written behind the steps, verified, pruned, loaded at any layout, and understood by `conclave ckpt`."""

from __future__ import annotations

import functools
import json
import weakref
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from conclave._library import call_checked, operators
from conclave.adapters import is_adapted
from conclave.agreement import together
from conclave.checkpoint_slices import MOMENTS, Slices, parameter_slices
from conclave.errors import CheckpointError, ConfigError, UnsupportedError
from conclave.initialization import allocate, check_materialized
from conclave.program_names import config_text
from conclave.selection_bias import SELECTION_BIAS
from conclave.transformed_model import transformed

FOLDER = "checkpoints"  # of a run's folder, as the program has it
CONTENT = "script"  # in a manifest's values: what a script wants back, as the bytes of JSON
BIAS = "selection_bias"  # the same: of all layers, as the program has it

_writers: dict[tuple, Any] = {}  # of this process, by folder and retention


def save_checkpoint(model: nn.Module, optimizer: Optimizer | None, folder: str | PathLike[str], step: int, *, content: Any = None, samples: int = 0,
                    tokens: int = 0, keep: int = 2, keep_every: int = 0, asynchronous: bool = True) -> None:
    """Saves `folder`/checkpoints/step-<step>, on all ranks, and removes the oldest beyond `keep`.

    With `asynchronous` the call returns while the files are written; the next steps of the optimizer move the save along, and none changes what is not
    written yet. `finish_saves()` waits for it; so do the next save and a load. What is not finished when the process ends leaves no trace.

    Args:
        optimizer: AdamW or Adam; None: no moments are saved.
        content: what the script wants back by `load_checkpoint`; anything that JSON has.
        samples, tokens: what the run has seen, for `conclave ckpt` and for the program, should it go on from here.
        keep: the newest that stay. keep_every: those of every so many steps stay, too; 0: none.

    Raises:
        OrderError: the model is not transformed.
        UnsupportedError: another optimizer, or adapters of PEFT.
        CheckpointError: nothing can be written there; on all ranks. Older checkpoints are as they were.
    """
    state = transformed(model, "conclave.save_checkpoint")
    encoded = together(lambda: _checked(model, optimizer, step, keep, content))
    finish_saves()
    slices = parameter_slices(model, optimizer, saves=True)
    writer = _writer(Path(folder) / FOLDER, keep, keep_every)
    numbers = {"step": step, "samples": samples, "tokens": tokens, "seed": state.mesh.seed, "updates": slices.updates}
    layout = {"ranks": state.mesh.world_size, "expert": state.mesh.expert_parallel_degree, "shard": state.mesh.dense["shard"].size()}
    values = {CONTENT: [float(byte) for byte in encoded], **({BIAS: bias} if (bias := _bias_of(model)) else {})}
    call_checked(writer.begin, numbers, config_text(model), layout, {"torch": torch.__version__}, values, *slices.columns(), error=CheckpointError)
    _follow_optimizers()
    if not asynchronous:
        finish_saves()


def finish_saves() -> list[Path]:
    """Waits for the saves under way, on all ranks, and returns their folders."""
    return [Path(call_checked(writer.finish, error=CheckpointError)) for writer in _writers.values() if writer.is_saving()]


def load_checkpoint(model: nn.Module, optimizer: Optimizer | None, folder: str | PathLike[str], *, verify: bool = True) -> dict[str, Any] | None:
    """Loads the newest whole checkpoint of `folder` (a run's folder, or one checkpoint's own), each rank its parts, at any layout. Collective.

    A damaged one is told and passed over. A model on the meta device gets memory. `verify`: data is compared with its hashes.

    Returns:
        {"step", "samples", "tokens", "content", "path"}; None: there is no checkpoint.

    Raises:
        OrderError: the model is not transformed.
        CheckpointError: all are damaged, or they are of another model; on all ranks.
    """
    transformed(model, "conclave.load_checkpoint")
    finish_saves()
    together(lambda: _check_optimizer(model, optimizer))
    operators()
    given = Path(folder)
    inner = given / FOLDER if (given / FOLDER).is_dir() else given
    candidates = together(lambda: [str(given)] if (given / "manifest.json").exists() else operators().checkpoint_candidates(str(inner)))
    if not candidates:
        return None
    if any(parameter.is_meta for parameter in model.parameters()):
        allocate(model)
    slices = together(lambda: _wanted(model, optimizer, candidates))
    names, shapes, begins, data = slices.columns()
    sizes = [torch.tensor(shape, dtype=torch.int64) for shape in shapes]
    path = call_checked(operators().load_checkpoint, candidates, _group(), verify, names, sizes, begins, data, error=CheckpointError)
    reader = torch.classes.conclave.CheckpointReader(path)
    numbers, values = dict(reader.numbers()), dict(reader.values())
    slices.take(numbers["updates"])
    _restore_bias(model, values.get(BIAS))
    check_materialized(model)
    content = json.loads(bytes(int(byte) for byte in values[CONTENT])) if CONTENT in values else None
    return {"step": numbers["step"], "samples": numbers["samples"], "tokens": numbers["tokens"], "content": content, "path": Path(path)}


def _checked(model: nn.Module, optimizer: Optimizer | None, step: int, keep: int, content: Any) -> bytes:
    check_materialized(model)
    _check_optimizer(model, optimizer)
    if not isinstance(step, int) or step < 0 or not isinstance(keep, int) or keep < 1:
        raise ConfigError(f"step is {step!r} and keep is {keep!r}, but must be whole numbers from 0 and from 1 on.")
    try:
        return json.dumps(content).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"content cannot be written as JSON: {error}.\nGive numbers, texts, lists and dictionaries; tensors belong into a checkpoint of "
                          "torch.distributed.checkpoint.") from None


def _check_optimizer(model: nn.Module, optimizer: Optimizer | None) -> None:
    if is_adapted(model):
        raise UnsupportedError("the model holds adapters of PEFT, which the program's checkpoints have no place for.\n"
                               "Use conclave.save_pretrained, or torch.distributed.checkpoint with conclave.state_dict.")
    kind = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper holds it
    if kind is None:
        return
    if not isinstance(kind, (torch.optim.AdamW, torch.optim.Adam)) or any(group.get("amsgrad") for group in kind.param_groups):
        raise UnsupportedError(f"the optimizer is {type(kind).__name__}, and the program's checkpoints hold the two moments of AdamW.\n"
                               "Use torch.optim.AdamW without amsgrad, or torch.distributed.checkpoint with conclave.state_dict.")


def _wanted(model: nn.Module, optimizer: Optimizer | None, candidates: list[str]) -> Slices:
    """What the newest one that can be opened has of what the model wants."""
    for path in candidates:
        try:
            names = set(call_checked(torch.classes.conclave.CheckpointReader, path, error=CheckpointError).names())
        except CheckpointError:
            continue
        has_moments = any(name.startswith(f"{MOMENTS[0]}/") for name in names)
        slices = parameter_slices(model, optimizer if has_moments else None, saves=False)
        if missing := sorted({name for name in slices.names if name not in names}):
            raise CheckpointError(f"{path} lacks {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "") +
                                  ".\nIt is of another model: use the configuration it was saved with.")
        return slices
    return parameter_slices(model, optimizer, saves=False)


def _bias_of(model: nn.Module) -> list[float]:
    return [value for module in model.modules() if hasattr(module, SELECTION_BIAS) for value in getattr(module, SELECTION_BIAS).double().tolist()]


@torch.no_grad()
def _restore_bias(model: nn.Module, values: list[float] | None) -> None:
    gates = [module for module in model.modules() if hasattr(module, SELECTION_BIAS)]
    if values is not None and gates:
        for gate, part in zip(gates, torch.tensor(values, dtype=torch.float64).view(len(gates), -1), strict=True):
            getattr(gate, SELECTION_BIAS).copy_(part)


def _writer(folder: Path, keep: int, keep_every: int) -> Any:
    key = str(folder), keep, keep_every, _group()
    if key not in _writers:
        operators()
        _writers.clear()  # nothing is under way
        _writers[key] = call_checked(torch.classes.conclave.CheckpointWriter, str(folder), _group(), keep, keep_every, error=CheckpointError)
    return _writers[key]


def _group() -> str:
    return _group_of(weakref.ref(dist.group.WORLD)).group_name


@functools.lru_cache(maxsize=1)
def _group_of(world: weakref.ref) -> dist.ProcessGroup:
    """Of all ranks, for CPU tensors."""
    return dist.new_group(backend="gloo")


@functools.cache
def _follow_optimizers() -> None:
    register_optimizer_step_pre_hook(_take_back)
    register_optimizer_step_post_hook(_move_on)


def _take_back(*arguments: Any) -> None:
    """What is not written yet is copied before it changes."""
    for writer in _writers.values():
        writer.take_back()


def _move_on(*arguments: Any) -> None:
    """All ranks step together: a save goes on when none of them is busy with it."""
    for writer in _writers.values():
        if writer.is_saving():
            busy = torch.tensor(float(writer.is_busy()))
            dist.all_reduce(busy, group=_group_of(weakref.ref(dist.group.WORLD)))
            if busy.item() == 0:
                call_checked(writer.go_on, error=CheckpointError)

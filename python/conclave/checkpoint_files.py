"""A Hugging Face checkpoint folder as the parameters of a model see it: which tensors of which files hold a parameter, read by byte ranges."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from conclave.errors import CheckpointError, UnsupportedModelError
from conclave.regions import Region, stored_tensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MOST_HEADER_BYTES = 100_000_000  # the format's own limit
ROWS_AT_ONCE = 1024


@dataclass
class Source:
    """Where a parameter lies: one tensor of its own shape (`whole`), or one tensor an expert for each part of dim 1 (`parts`)."""

    whole: str | None = None
    parts: dict[str, list[str]] = field(default_factory=dict)  # by the conversion's source pattern: names by expert


class CheckpointFolder:
    """Opens files when they are first read. `folder`: with model.safetensors, or with an index and its files.

    Where there are both, model.safetensors counts, as for Transformers and for `conclave train`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        if os.path.lexists(folder / SINGLE):
            self._file_of = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        elif os.path.lexists(folder / INDEX):
            self._file_of = _weight_map(folder / INDEX)
        else:
            raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}.\n{_remedy(folder)}")

    def names(self) -> list[str]:
        return list(self._file_of)

    def slice_of(self, name: str) -> Any:
        """A view that reads only the bytes of what it is indexed with; `get_shape()` reads none."""
        try:
            return self._open(self._file_of[name]).get_slice(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / self._file_of[name]} does not give {name}: {error}") from None

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self.folder / file
            try:
                _check_header(path)
                self._files[file] = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path} cannot be read: {error}") from None
        return self._files[file]


def _weight_map(index: Path) -> dict[str, str]:
    """The index's table: file by tensor. Files are those of the index's own folder."""
    try:
        if not index.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{index} cannot be read: it is not a regular file")
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{index} cannot be read: {error}") from None
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise CheckpointError(f'{index} has no "weight_map" object, so it is not the index of a sharded model')
    for name, file in files.items():
        if not isinstance(file, str) or os.path.basename(file) != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{index}: the file of {name} is {file!r}, but must be the name of a .safetensors file in the same folder")
    return files


def _check_header(path: Path) -> None:
    """Refuses what safetensors' reader takes and `conclave train` does not: a name twice, of which the last would count, and lists for objects."""
    if not path.is_file():  # a pipe would be waited for
        raise OSError("it is not a regular file" if os.path.lexists(path) else "there is no such file")
    with open(path, "rb") as file:
        header = file.read(min(int.from_bytes(file.read(8), "little"), MOST_HEADER_BYTES))
    try:
        entries = json.loads(header, object_pairs_hook=tuple)  # an object is a tuple of pairs
    except (ValueError, RecursionError):
        return  # safetensors says what is wrong
    if not isinstance(entries, tuple):
        return
    for name, value in entries:
        if isinstance(value, list):
            raise OSError(f'its header describes "{name}" by a list')
    metadata = [value for name, value in entries if name == "__metadata__" and value]
    for group in (entries, *metadata):
        names = [pair[0] for pair in group]
        if len(set(names)) < len(names):
            raise OSError(f'its header has "{max(names, key=names.count)}" twice')


def sources_of(model: nn.Module, names: list[str]) -> dict[str, Source]:
    """By parameter, which of the checkpoint's tensors hold it, by Transformers' own table of names; a model of one's own has its own names."""
    if not isinstance(model, PreTrainedModel):
        return {name: Source(whole=name) for name in names}
    conversions = get_model_conversion_mapping(model)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    stored = stored_tensors(model)  # by which Transformers sees whether names lack the prefix of the base, or have it in excess
    sources: dict[str, Source] = {}
    for name in sorted(names, key=dot_natural_key):  # experts in the order of their numbers
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, stored)
        source = sources.setdefault(target, Source())
        if pattern is None:
            source.whole = name
            continue
        converter = converter_of[pattern]
        if [type(each) for each in converter.operations] not in ([MergeModulelist], [MergeModulelist, Concatenate]):
            raise UnsupportedModelError(f"{target} is stored in a form that is not read by parts: {converter.operations}")
        if not source.parts:
            source.parts = {each: [] for each in converter.source_patterns}
        source.parts[pattern].append(name)
    return sources


def join_tied(sources: dict[str, Source], tied: Mapping[str, str], checkpoint: CheckpointFolder) -> None:
    """Makes one source of the two names of a tied parameter: the files may hold either, or both with the same values.

    `tied`: the other name by the one that the model stores the parameter under.
    """
    for name, other in tied.items():
        if other not in sources:
            continue
        source = sources.pop(other)
        if name not in sources:
            sources[name] = source
            continue
        first, second = (checkpoint.slice_of(each.whole) for each in (sources[name], source) if each.whole is not None)
        same_shape = first.get_shape() == second.get_shape()
        rows = range(0, first.get_shape()[0], ROWS_AT_ONCE) if same_shape else ()
        if not same_shape or any(not torch.equal(first[row:row + ROWS_AT_ONCE], second[row:row + ROWS_AT_ONCE]) for row in rows):
            raise CheckpointError(f"{checkpoint.folder} holds {name} and {other} with different values, but the model ties them.\n"
                                  "Set config.tie_word_embeddings to False if it was trained with two, or remove one of the tensors.")


def check_shapes(folder: CheckpointFolder, name: str, source: Source, shape: tuple[int, ...]) -> None:
    """Refuses a source of a parameter of `shape` that has another. Reads no values."""
    if source.whole is not None:
        _check_shape(source.whole, tuple(folder.slice_of(source.whole).get_shape()), shape)
    for names in source.parts.values():
        if len(names) != shape[0]:
            raise CheckpointError(f"the checkpoint has {len(names)} experts for {name}, and the model has {shape[0]}.\nUse the checkpoint's own config.json.")
        for each in names:
            _check_shape(each, tuple(folder.slice_of(each).get_shape()), (shape[1] // len(source.parts), *shape[2:]))


def read_region(folder: CheckpointFolder, source: Source, region: Region, shape: tuple[int, ...]) -> torch.Tensor:
    """The region of a parameter of `shape`, on the CPU in the file's dtype. No other bytes are read."""
    if source.whole is not None:
        view = folder.slice_of(source.whole)
        return view[region.slices] if shape else view[...]
    columns, experts = [], region.slices[0]
    begin, width = 0, shape[1] // len(source.parts)
    for names in source.parts.values():
        views = [folder.slice_of(each) for each in names[experts]]
        first = max(region.offset[1], begin) - begin
        last = min(region.offset[1] + region.size[1], begin + width) - begin
        if first < last:
            columns.append(torch.stack([view[(slice(first, last), *region.slices[2:])] for view in views]))
        begin += width
    return torch.cat(columns, dim=1)


def _remedy(folder: Path) -> str:
    pickled = next((path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern)) if path.is_file()), None)
    if pickled is not None:
        return (f"It holds {pickled}, which cannot be read by parts. Write it anew by Transformers' from_pretrained(folder) and save_pretrained(other), or "
                "give its tensors from one rank: conclave.load_state_dict_from_rank0(model, torch.load(file) if rank == 0 else None).")
    if (folder / ".metadata").exists():
        return "It is a checkpoint of torch.distributed.checkpoint: use dcp.load with conclave.state_dict(model)."
    return "Give the folder of a checkpoint that Transformers or Conclave has saved."


def _check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise CheckpointError(f"{name} has the shape {list(found)} in the checkpoint, and the model wants {list(wanted)}.\n"
                              "Use the checkpoint's own config.json.")

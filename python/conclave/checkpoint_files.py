"""A Hugging Face checkpoint folder as the parameters of a model see it: which tensors of which files hold a parameter, read by byte ranges."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from conclave.errors import CheckpointError, UnsupportedModelError
from conclave.regions import Region, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass
class Source:
    """Where a parameter lies: one tensor of its own shape (`whole`), or one tensor an expert for each part of dim 1 (`parts`)."""

    whole: str | None = None
    parts: dict[str, list[str]] = field(default_factory=dict)  # by the conversion's source pattern: names by expert


class CheckpointFolder:
    """Opens files when they are first read. `folder`: with model.safetensors, or with an index and its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        index = folder / INDEX
        if index.exists():
            self._file_of = json.loads(index.read_text())["weight_map"]
        elif (folder / SINGLE).exists():
            self._file_of = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        else:
            raise CheckpointError(f"{folder} holds neither {INDEX} nor {SINGLE}.\nGive the folder of a checkpoint that Transformers or Conclave has saved.")

    def names(self) -> list[str]:
        return list(self._file_of)

    def slice_of(self, name: str) -> Any:
        """A view that reads only the bytes of what it is indexed with; `get_shape()` reads none."""
        return self._open(self._file_of[name]).get_slice(name)

    def _open(self, file: str) -> Any:
        if file not in self._files:
            try:
                self._files[file] = safe_open(self.folder / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{self.folder / file} cannot be read: {error}") from None
        return self._files[file]


def sources_of(model: PreTrainedModel, names: list[str]) -> dict[str, Source]:
    """By parameter, which of the checkpoint's tensors hold it, by Transformers' own table of names."""
    conversions = get_model_conversion_mapping(model)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    stored = dict.fromkeys(stored_tensors(model))
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


def read_region(folder: CheckpointFolder, name: str, source: Source, region: Region, shape: tuple[int, ...]) -> torch.Tensor:
    """The region of a parameter of `shape`, on the CPU in the file's dtype. No other bytes are read."""
    if source.whole is not None:
        view = folder.slice_of(source.whole)
        _check_shape(source.whole, tuple(view.get_shape()), shape)
        return view[region.slices] if shape else view[...]
    columns, experts = [], region.slices[0]
    begin = 0
    for names in source.parts.values():
        if len(names) != shape[0]:
            raise CheckpointError(f"the checkpoint has {len(names)} experts for {name}, and the model has {shape[0]}")
        views = [folder.slice_of(each) for each in names[experts]]
        width = shape[1] // len(source.parts)
        for view, each in zip(views, names[experts], strict=True):
            _check_shape(each, tuple(view.get_shape()), (width, *shape[2:]))
        first = max(region.offset[1], begin) - begin
        last = min(region.offset[1] + region.size[1], begin + width) - begin
        if first < last:
            columns.append(torch.stack([view[(slice(first, last), *region.slices[2:])] for view in views]))
        begin += width
    return torch.cat(columns, dim=1)


def _check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise CheckpointError(f"{name} has the shape {list(found)} in the checkpoint, and the model wants {list(wanted)}.\n"
                              "Use the checkpoint's own config.json.")

"""Writes a Hugging Face folder from parameters that lie in parts on many ranks."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from conclave.checkpoint_files import INDEX, SINGLE
from conclave.errors import CheckpointError
from conclave.regions import Region, local_of, stored_tensors
from conclave.transformed_model import transformed

Result = TypeVar("Result")
_NAMES = {torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".unfinished")


@dataclass
class PlannedFile:
    """A file with its parameters (Transformers' names in memory) and the tensors that they become, in the order of the file."""

    parameters: list[str] = field(default_factory=list)
    tensors: dict[str, tuple[str, list[int], int]] = field(default_factory=dict)  # dtype, shape, bytes

    @property
    def bytes(self) -> int:
        return sum(size for _, _, size in self.tensors.values())

    def header(self) -> bytes:
        """The safetensors header: its length, then compact JSON padded to a multiple of 8."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        begin = 0
        for name, (dtype, shape, size) in self.tensors.items():
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
            begin += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


class FolderWriter:
    """One save. Every rank makes the same plan; file i is written by rank i mod ranks; parts of a parameter go to the rank that writes it."""

    def __init__(self, model: nn.Module, folder: Path, max_shard_size: int) -> None:
        self._model = model
        self._folder = folder
        self._parameters = stored_tensors(model)
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._device = local_of(next(model.parameters())).device
        self._failure: str | None = None
        self._files = self._plan(max_shard_size)
        regions: list[dict[str, Region]] = [{} for _ in range(self._ranks)]
        dist.all_gather_object(regions, {name: Region.of(parameter) for name, parameter in self._parameters.items()})
        self._regions = regions

    def write(self) -> None:
        self._attempt(lambda: self._folder.mkdir(parents=True, exist_ok=True))
        self._agree()
        for number, planned in enumerate(self._files):
            self._write_file(planned, self._path(number), writer=number % self._ranks)
        self._agree()
        for number in range(self._rank, len(self._files), self._ranks):
            self._attempt(lambda path=self._path(number): _unfinished(path).rename(path))
        self._agree()
        if self._rank == 0:
            self._attempt(self._finish)
        self._agree()

    def _plan(self, max_shard_size: int) -> list[PlannedFile]:
        files = [PlannedFile()]
        for name, parameter in self._parameters.items():
            described = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            tensors = {key: (_NAMES[each.dtype], list(each.shape), prod(each.shape) * each.element_size())
                       for key, each in self._as_stored(name, described).items()}
            if files[-1].parameters and files[-1].bytes + sum(size for _, _, size in tensors.values()) > max_shard_size:
                files.append(PlannedFile())
            files[-1].parameters.append(name)
            files[-1].tensors |= tensors
        return files

    def _as_stored(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """A parameter as the tensors of a checkpoint: Transformers' own, or its own of a model of one's own."""
        return revert_weight_conversion(self._model, {name: tensor}) if isinstance(self._model, PreTrainedModel) else {name: tensor}

    def _path(self, number: int) -> Path:
        count = len(self._files)
        return self._folder / (SINGLE if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors")

    def _write_file(self, planned: PlannedFile, path: Path, writer: int) -> None:
        """A failure is kept for `_agree`: the parts of the others must be received in any case."""
        file: IO[bytes] | None = None
        if writer == self._rank:
            file = self._attempt(lambda: open(_unfinished(path), "wb"))
            self._attempt(lambda: file.write(planned.header()))
        for name in planned.parameters:
            whole = self._gather(name, writer)
            if whole is not None:
                self._attempt(lambda name=name, whole=whole: self._write_parameter(file, planned, name, whole))
        if file is not None:
            self._attempt(file.flush)
            self._attempt(lambda: os.fsync(file.fileno()))  # before the file gets its name
            self._attempt(file.close)

    def _write_parameter(self, file: IO[bytes], planned: PlannedFile, name: str, whole: torch.Tensor) -> None:
        tensors = self._as_stored(name, whole)
        for key in planned.tensors:
            if key in tensors:
                file.write(memoryview(tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy()))

    def _gather(self, name: str, writer: int) -> torch.Tensor | None:
        """The whole parameter on the writer, on the CPU. Of ranks that hold the same region the first sends it, the writer itself before all."""
        parameter = self._parameters[name]
        holders: dict[Region, int] = {}
        for rank in [writer, *range(self._ranks)]:
            region = self._regions[rank][name]
            if not region.is_empty:
                holders.setdefault(region, rank)
        if self._rank != writer:
            if holders.get(self._regions[self._rank][name]) == self._rank:
                dist.send(local_of(parameter).detach().contiguous(), writer)
            return None
        whole = torch.empty(parameter.shape, dtype=parameter.dtype)
        for region, rank in holders.items():
            if rank == writer:
                part = local_of(parameter).detach()
            else:
                part = torch.empty(region.size, dtype=parameter.dtype, device=self._device)
                dist.recv(part, rank)
            whole[region.slices] = part.cpu()
        return whole

    def _finish(self) -> None:
        """What one rank writes: index, configuration, and away with files of an earlier save under other names."""
        names = {self._path(number).name for number in range(len(self._files))}
        if len(names) > 1:
            total = sum(planned.bytes for planned in self._files)
            weight_map = {key: self._path(number).name for number, planned in enumerate(self._files) for key in planned.tensors}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        else:
            (self._folder / INDEX).unlink(missing_ok=True)
        for path in self._folder.glob("model*.safetensors"):
            if path.name not in names and re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", path.name):
                path.unlink()
        if isinstance(self._model, PreTrainedModel):
            self._write_configuration(self._model)

    def _write_configuration(self, model: PreTrainedModel) -> None:
        config = copy.deepcopy(model.config)
        for key, value in transformed(model, "conclave.save_pretrained").given_config.items():
            setattr(config, key, value)
        config.dtype = str(next(iter(self._parameters.values())).dtype).removeprefix("torch.")
        config.architectures = [type(model).__name__.removeprefix("FSDP")]
        config.save_pretrained(self._folder)
        if model.can_generate():
            model.generation_config.save_pretrained(self._folder)

    def _attempt(self, work: Callable[[], Result]) -> Result | None:
        """What `work` returns, or None when it or something before it failed."""
        if self._failure is not None:
            return None
        try:
            return work()
        except OSError as error:
            self._failure = f"rank {self._rank}: {error}"
            return None

    def _agree(self) -> None:
        """All ranks go on, or all raise what went wrong on one."""
        failures: list[str | None] = [None] * self._ranks
        dist.all_gather_object(failures, self._failure)
        found = [failure for failure in failures if failure is not None]
        if found:
            if self._folder.is_dir():
                for number in range(self._rank, len(self._files), self._ranks):
                    _unfinished(self._path(number)).unlink(missing_ok=True)
            raise CheckpointError(f"the model could not be saved to {self._folder}: {found[0]}")

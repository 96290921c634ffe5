"""PyTorch's distributed checkpoints (DCP), written and read for `conclave ckpt to-dcp` and `from-dcp`.

Those commands know what a checkpoint of Conclave holds; this module knows torch.distributed.checkpoint. Tensors pass
between the two through standard input and output, one after the other, so that neither ever holds the model:

    write FOLDER   reads a line of JSON {"tensors": [{"path", "shape", "dtype"}, ...], "updates": number, "groups": [{"options",
                   "params"}, ...], "state": text}, then every tensor's bytes in that order
    read FOLDER    writes a line of JSON {"tensors": {name: {"shape", "dtype"}}, "steps": {name: number}, "state": text}, reads
                   a line of JSON with the names that are wanted, then writes each one's bytes in that order; of a
                   folder that cannot be read, a line {"refusal": text}

What `write` leaves is what torch.distributed.checkpoint.save leaves of {"model": get_model_state_dict(model), "optimizer":
get_optimizer_state_dict(model, AdamW)}, with one more entry, "conclave". `read` takes any DCP folder.

Memory: `write` holds one part of a tensor (CHUNK_BYTES, or one row of its first dim where that is larger), `read` one
tensor.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import sys
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType

STATE = ("conclave", "state")  # a tensor of bytes: the checkpoint's step, job and model
CHUNK_BYTES = 256 << 20
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "U8": torch.uint8}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def read_into(source: BinaryIO, tensor: torch.Tensor) -> torch.Tensor:
    rest = bytes_of(tensor)
    while rest:
        count = source.readinto(rest)
        if not count:
            raise EOFError("the tensors ended early")
        rest = rest[count:]
    return tensor


EntryPath = tuple[str | int, ...]  # of an entry in the nested state


def name_of(path: EntryPath) -> str:
    return ".".join(map(str, path))


def chunks_of(name: str, shape: list[int], dtype: torch.dtype) -> list[WriteItem]:
    """A tensor's parts in the order of its elements, cut along its first dim."""
    rows = shape[0] if shape else 1
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    items = []
    for begin in range(0, max(1, rows), step):
        offsets = torch.Size([begin, *([0] * (len(shape) - 1))] if shape else [])
        sizes = torch.Size([min(step, rows - begin), *shape[1:]] if shape else [])
        data = TensorWriteData(chunk=ChunkStorageMetadata(offsets, sizes), properties=TensorProperties(dtype=dtype), size=torch.Size(shape))
        items.append(WriteItem(index=MetadataIndex(name, offsets), type=WriteItemType.SHARD, tensor_data=data))
    return items


def group_options(options: dict[str, Any]) -> dict[str, Any]:
    """What a parameter group of PyTorch's AdamW holds beside its parameters."""
    (group,) = torch.optim.AdamW([torch.zeros(1)], **{**options, "betas": tuple(options["betas"])}).param_groups
    return {key: value for key, value in group.items() if key != "params"}


def entries_at_hand(head: dict[str, Any]) -> dict[EntryPath, Any]:
    """Of the state: all but the tensors that are streamed."""
    entries: dict[EntryPath, Any] = {STATE: torch.frombuffer(bytearray(head["state"].encode()), dtype=torch.uint8)}
    for number, group in enumerate(head["groups"]):
        for parameter in group["params"]:
            entries["optimizer", "state", parameter, "step"] = torch.tensor(float(head["updates"]))
        for key, value in {**group_options(group["options"]), "params": group["params"]}.items():
            entries["optimizer", "param_groups", number, key] = value
    return entries


class StreamPlanner(SavePlanner):
    """A plan of tensors that are not there yet: each is read from `source` when the writer asks for it, in the plan's order."""

    def __init__(self, head: dict[str, Any], source: BinaryIO) -> None:
        self._source = source
        self._at_hand = {name_of(path): value for path, value in entries_at_hand(head).items()}
        self._paths = {name_of(path): path for path in [*(tuple(each["path"]) for each in head["tensors"]), *entries_at_hand(head)]}
        self._streamed = [item for each in head["tensors"] for item in chunks_of(name_of(each["path"]), each["shape"], DTYPES[each["dtype"]])]
        self._next = 0

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        items = list(self._streamed)
        for name, value in self._at_hand.items():
            if isinstance(value, torch.Tensor):
                items += chunks_of(name, list(value.shape), value.dtype)
            else:
                items.append(WriteItem(index=MetadataIndex(name), type=WriteItemType.BYTE_IO))
        return SavePlan(items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans, metadata = create_default_global_save_plan(all_plans)
        return plans, dataclasses.replace(metadata, planner_data=self._paths)  # by which PyTorch makes the nested state again

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.index.fqn in self._at_hand:
            value = self._at_hand[write_item.index.fqn]
            if isinstance(value, torch.Tensor):
                return value
            file = io.BytesIO()
            torch.save(value, file)
            return file
        expected = self._streamed[self._next].index
        if (write_item.index.fqn, write_item.index.offset) != (expected.fqn, expected.offset):
            raise RuntimeError(f"PyTorch asks for {write_item.index}, but {expected} comes next")
        self._next += 1
        data = write_item.tensor_data
        return read_into(self._source, torch.empty(data.chunk.sizes, dtype=data.properties.dtype))


def write(folder: Path, source: BinaryIO) -> None:
    head = json.loads(source.readline())
    # One thread writes one file, flushed to the disk, in the order of the plan.
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
    dcp.save({}, storage_writer=writer, planner=StreamPlanner(head, source), no_dist=True)


def load(folder: Path, described: dict[str, TensorStorageMetadata]) -> dict[str, torch.Tensor]:
    tensors = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in described.items()}
    if tensors:
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    return tensors


def metadata_of(folder: Path) -> Metadata:
    """Of a whole folder; ValueError says why it is none."""
    try:
        metadata = dcp.FileSystemReader(folder).read_metadata()
        files = {each.relative_path for each in metadata.storage_data.values()}
    except Exception as error:  # pickle raises anything
        raise ValueError(f"{folder / '.metadata'} cannot be read as a distributed checkpoint's: {type(error).__name__}: {error}") from error
    missing = sorted(name for name in files if not (folder / name).is_file())
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]}, which its .metadata names. Copy the folder whole.")
    return metadata


def read(folder: Path, orders: BinaryIO, out: BinaryIO) -> None:
    try:
        described = metadata_of(folder).state_dict_metadata
    except ValueError as error:
        out.write(json.dumps({"refusal": str(error)}).encode() + b"\n")
        out.flush()
        return
    tensors = {name: each for name, each in described.items() if isinstance(each, TensorStorageMetadata)}
    steps = {name: each for name, each in tensors.items() if name.endswith(".step") and each.size.numel() == 1}
    head: dict[str, Any] = {"tensors": {name: {"shape": list(each.size), "dtype": NAMES.get(each.properties.dtype, str(each.properties.dtype))}
                                        for name, each in tensors.items()},
                            "steps": {name: float(tensor) for name, tensor in load(folder, steps).items()}}
    state = name_of(STATE)
    if state in tensors:
        head["state"] = bytes(bytes_of(load(folder, {state: tensors[state]})[state])).decode()
    out.write(json.dumps(head).encode() + b"\n")
    out.flush()
    line = orders.readline()
    if not line:  # the other side has refused what it was offered
        return
    for name in json.loads(line):
        out.write(bytes_of(load(folder, {name: tensors[name]})[name]))
    out.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m conclave.ckpt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["write", "read"], help="started by: conclave ckpt to-dcp, conclave ckpt from-dcp")
    parser.add_argument("folder", type=Path, help="of the distributed checkpoint")
    arguments = parser.parse_args()
    out, sys.stdout = sys.stdout.buffer, sys.stderr  # whatever a library prints must not get among the tensors
    if arguments.work == "write":
        write(arguments.folder, sys.stdin.buffer)
    else:
        read(arguments.folder, sys.stdin.buffer, out)


if __name__ == "__main__":
    main()

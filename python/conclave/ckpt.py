"""PyTorch's distributed checkpoints (DCP), written and read for `conclave ckpt to-dcp` and `from-dcp`.

Those commands know what a checkpoint of Conclave holds; this module knows torch.distributed.checkpoint. Tensors pass
between the two through standard input and output, one after the other, so that neither ever holds the model:

    write FOLDER   reads a line of JSON {"tensors": [{"name", "shape", "dtype"}, ...], "state": text}, then every tensor's
                   bytes in that order
    read FOLDER    writes a line of JSON {"tensors": {name: {"shape", "dtype"}}, "state": text}, reads a line of JSON with
                   the names that are wanted, then writes each one's bytes in that order

Memory: `write` holds one part of a tensor (CHUNK_BYTES, or one row of its first dim where that is larger), `read` one
tensor.
"""

from __future__ import annotations

import argparse
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

STATE = "conclave.state"  # a tensor of bytes: the checkpoint's step, job and model
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


class StreamPlanner(SavePlanner):
    """A plan of tensors that are not there yet: each is read from `source` when the writer asks for it, in the plan's order."""

    def __init__(self, tensors: list[dict[str, Any]], state: str, source: BinaryIO) -> None:
        self._source = source
        self._state = torch.frombuffer(bytearray(state.encode()), dtype=torch.uint8)
        self._items = [item for each in tensors for item in chunks_of(each["name"], each["shape"], DTYPES[each["dtype"]])]
        self._items += chunks_of(STATE, [len(self._state)], torch.uint8)
        self._next = 0

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        return SavePlan(self._items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        expected = self._items[self._next].index
        if (write_item.index.fqn, write_item.index.offset) != (expected.fqn, expected.offset):
            raise RuntimeError(f"PyTorch asks for {write_item.index}, but {expected} comes next")
        self._next += 1
        if write_item.index.fqn == STATE:
            return self._state
        data = write_item.tensor_data
        return read_into(self._source, torch.empty(data.chunk.sizes, dtype=data.properties.dtype))


def write(folder: Path, source: BinaryIO) -> None:
    head = json.loads(source.readline())
    # One thread writes one file, flushed to the disk, in the order of the plan.
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
    dcp.save({}, storage_writer=writer, planner=StreamPlanner(head["tensors"], head["state"], source), no_dist=True)


def load(folder: Path, name: str, described: TensorStorageMetadata) -> torch.Tensor:
    tensors = {name: torch.empty(described.size, dtype=described.properties.dtype)}
    dcp.load(tensors, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    return tensors[name]


def read(folder: Path, orders: BinaryIO, out: BinaryIO) -> None:
    described = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {name: each for name, each in described.items() if isinstance(each, TensorStorageMetadata)}
    head: dict[str, Any] = {"tensors": {name: {"shape": list(each.size), "dtype": NAMES.get(each.properties.dtype, str(each.properties.dtype))}
                                        for name, each in tensors.items()}}
    if STATE in tensors:
        head["state"] = bytes(bytes_of(load(folder, STATE, tensors[STATE]))).decode()
    out.write(json.dumps(head).encode() + b"\n")
    out.flush()
    line = orders.readline()
    if not line:  # the other side has refused what it was offered
        return
    for name in json.loads(line):
        out.write(bytes_of(load(folder, name, tensors[name])))
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

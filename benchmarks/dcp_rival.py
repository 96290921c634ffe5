"""One rank of a save and load by torch.distributed.checkpoint, for benchmarks/checkpoint.py. Started by torchrun.

Each rank holds `--bytes` / world bytes of fp32 as DTensors sharded on dim 0, as FSDP2 holds parameters and moments, and writes JSON lines on rank 0:
seconds of save, of async_save's call and its future, and of load.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard


def seconds_of(call) -> tuple[float, object]:
    dist.barrier()
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def forget_pages(folder: Path) -> None:
    """What was written is on the disk, and its pages leave the cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--tensors", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    dist.init_process_group("cpu:gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = options.bytes // 4 // 1024 // options.tensors // dist.get_world_size()
    state = {f"tensor.{i}": DTensor.from_local(torch.randn(rows, 1024), mesh, [Shard(0)]) for i in range(options.tensors)}
    lines = []
    for round_number in range(options.rounds + 1):  # the first is not counted: buffers are made
        folder = options.folder / f"round-{round_number}"
        sync, _ = seconds_of(lambda: dcp.save(state, storage_writer=dcp.FileSystemWriter(folder / "sync", sync_files=True)))
        stall, future = seconds_of(lambda: dcp.async_save(state, storage_writer=dcp.FileSystemWriter(folder / "async", sync_files=True)))
        start = time.perf_counter()
        future.result()
        behind = time.perf_counter() - start
        if dist.get_rank() == 0:
            forget_pages(folder)
        load, _ = seconds_of(lambda: dcp.load(state, storage_reader=dcp.FileSystemReader(folder / "sync")))
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(folder)
        lines.append({"save_seconds": sync, "async_stall_seconds": stall, "async_seconds": stall + behind, "load_seconds": load,
                      "bytes": rows * 4096 * options.tensors * dist.get_world_size()})
    if dist.get_rank() == 0:
        options.output.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

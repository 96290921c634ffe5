"""Runs a test's function on several ranks of torch.distributed (Gloo), as processes of this machine.

The test's module is imported once, with PyTorch and Transformers, in a process that has computed nothing yet; the ranks are its forks. So a world costs
one import, not one a rank.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ranks import PATIENCE_SECONDS, free_port, without_launcher

ROOT = Path(__file__).resolve().parents[1]


def run_torch_ranks(world: int, function: Callable[..., Any], *arguments: Any, patience: float = PATIENCE_SECONDS,
                    initialize: bool = True) -> list[Any]:
    """What `function(*arguments)` returned on each rank. The function is a module's own, its arguments and results can be pickled; it may use
    torch.distributed, which is initialized (or, for a whole script, is left to it with the variables of torchrun). An exception on a rank fails the test with that rank's output."""
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task"
        task.write_bytes(pickle.dumps((str(Path(sys.modules[function.__module__].__file__)), function.__name__, arguments, world, patience, initialize)))
        environment = {**without_launcher(), "PYTHONPATH": os.pathsep.join(map(str, [ROOT / "python", ROOT / "tests", ROOT / "tests/python"])),
                       "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run([sys.executable, __file__, folder], env=environment, capture_output=True, text=True, timeout=patience + 60)
        text = f"{done.stdout[-4000:]}\n{done.stderr[-12000:]}"
        assert done.returncode == 0, f"exit code {done.returncode}\n{text}"
        return [pickle.loads((Path(folder) / f"result-{rank}").read_bytes()) for rank in range(world)]


def _run_rank(folder: Path, rank: int, world: int, function: Callable[..., Any], arguments: tuple, initialize: bool, patience: float) -> None:
    import torch
    import torch.distributed as dist

    faulthandler.dump_traceback_later(patience * 0.9)  # says where a rank hangs
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    if initialize:
        dist.init_process_group("gloo")
    result = function(*arguments)
    (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
    if initialize:
        dist.barrier()
        dist.destroy_process_group()


def _main(folder: Path) -> int:
    file, name, arguments, world, patience, initialize = pickle.loads((folder / "task").read_bytes())
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = {}
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _run_rank(folder, rank, world, getattr(module, name), arguments, initialize, patience)
                code = 0
            except BaseException:
                print(f"rank {rank}:\n{traceback.format_exc()}", file=sys.stderr)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children[child] = rank
    failed = False
    until = time.monotonic() + patience
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            if time.monotonic() > until:
                print(f"ranks {sorted(children.values())} did not end within {patience} s", file=sys.stderr)
                failed = True
            if failed:  # the others wait for a rank that is gone
                for left in children:
                    os.kill(left, 9)
                for left in children:
                    os.waitpid(left, 0)
                return 1
            time.sleep(0.02)
            continue
        failed = failed or status != 0
        del children[child]
        if failed:
            time.sleep(0.5)  # lets the others say what they saw
    return int(failed)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))

"""Runs a test's function on several ranks of torch.distributed (Gloo), as processes of this machine.

PyTorch, Transformers and what goes with them are imported once a session, by a server that computes nothing. For each world it forks a process that imports the
test's module, and the ranks are forks of that. So a world costs no import of those libraries.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import importlib
import importlib.util
import os
import pickle
import select
import signal
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
# What most tests import. One that is missing, or not built, is the affair of the test that needs it.
PRELOADED = ["torch", "torch.distributed", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "torch.distributed.tensor", "pytest",
             "transformers.trainer", "transformers.models.mixtral.modeling_mixtral", "accelerate", "peft", "conclave", "tiny_models"]


def run_torch_ranks(world: int, function: Callable[..., Any], *arguments: Any, patience: float = PATIENCE_SECONDS,
                    initialize: bool = True) -> list[Any]:
    """What `function(*arguments)` returned on each rank. The function is a module's own, its arguments and results can be pickled; it may use
    torch.distributed, which is initialized (or, for a whole script, is left to it with the variables of torchrun). An exception on a rank fails the test with that rank's output."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = Path(sys.modules[function.__module__].__file__)
        task = file, function.__name__, arguments, world, patience, initialize
        (folder / "task").write_bytes(pickle.dumps((environment_of_ranks(), os.getcwd(), task)))
        code = _Server.of_session().run(folder, patience + 60)
        text = "\n".join((folder / name).read_text(errors="replace")[-12000:] for name in ("stdout", "stderr"))
        assert code == 0, f"exit code {code}\n{text}"
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(world)]


def environment_of_ranks() -> dict[str, str]:
    return {**without_launcher(), "PYTHONPATH": os.pathsep.join(map(str, [ROOT / "python", ROOT / "tests", ROOT / "tests/python"])),
            "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class _Server:
    """The process that has imported everything."""

    _running: _Server | None = None

    @classmethod
    def of_session(cls) -> _Server:
        if cls._running is None or cls._running._process.poll() is not None:
            cls._running = cls()
        return cls._running

    def __init__(self) -> None:
        # A session of its own, so that all that is left of a world can be ended with it.
        self._process = subprocess.Popen([sys.executable, __file__], env=environment_of_ranks(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         start_new_session=True)
        atexit.register(self.end)

    def run(self, folder: Path, seconds: float) -> int:
        """The exit code of the world whose task is in the folder."""
        self._process.stdin.write(f"{folder}\n".encode())
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self.end()
            raise AssertionError(f"the world of {folder} did not end within {seconds} s")
        answer = self._process.stdout.readline()
        assert answer, "the server of ranks has ended"
        return int(answer)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _serve() -> None:
    """Answers each line of standard input, a folder with a task, with the exit code of its world."""
    for name in PRELOADED:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    with contextlib.suppress(Exception):
        importlib.import_module("conclave._library").operators()
    gc.collect()
    gc.freeze()  # what is here stays as it is, and is shared by all ranks: collections would touch it
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        child = os.fork()
        if child == 0:
            os._exit(_run_world_in(folder))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run_world_in(folder: Path) -> int:
    """In the process that forks the ranks: their environment, folder and outputs; then the world."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 1
    try:
        environment, working_folder, task = pickle.loads((folder / "task").read_bytes())
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(working_folder)
        code = _run_world(folder, *task)
    except BaseException:
        print(traceback.format_exc(), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _run_rank(folder: Path, rank: int, world: int, function: Callable[..., Any], arguments: tuple, initialize: bool, patience: float) -> None:
    import torch
    import torch.distributed as dist

    faulthandler.dump_traceback_later(patience * 0.9)  # says where a rank hangs
    torch.set_num_threads(1)
    dist.set_debug_level_from_env()  # which an import does
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    if initialize:
        dist.init_process_group("gloo")
    result = function(*arguments)
    (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
    if initialize:
        dist.barrier()
        dist.destroy_process_group()


def _run_world(folder: Path, file: Path, name: str, arguments: tuple, world: int, patience: float, initialize: bool) -> int:
    spec = importlib.util.spec_from_file_location(file.stem, file)
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
    _serve()

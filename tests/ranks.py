"""Starts the ranks of one `conclave` command as processes of this machine, without a launcher.

Each rank gets the variables that torchrun would set; rank 0 serves the store itself. It saves the seconds that torchrun
takes to start, and leaves each rank's process, output and exit code to the test.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
# Below the range that Linux gives to outgoing connections, so that none of those takes the port before rank 0 does.
PORTS = range(20000, 32000)
LAUNCHER_PREFIXES = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "TORCHELASTIC_")
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def program() -> Path:
    """The program under test: CONCLAVE_PROGRAM, else build/conclave of this checkout."""
    return Path(os.environ.get("CONCLAVE_PROGRAM") or ROOT / "build/conclave")


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"none of 100 ports in {PORTS} is free")


@dataclass(frozen=True)
class RankResult:
    """How one rank ended."""

    rank: int
    returncode: int
    stdout: str
    stderr: str


class Ranks:
    """Running ranks; a context manager that leaves none of them running.

    `processes[r]` is rank r's process, for tests that stop or kill it.
    """

    def __init__(
        self,
        world: int,
        args: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Starts `world` ranks of `conclave *args`. `env`: variables on top of this process's own."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in LAUNCHER_VARIABLES and not name.startswith(LAUNCHER_PREFIXES)
        }
        command = [str(program()), *map(str, args)]
        port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        # Files, not pipes: a rank that writes much must not wait for a reader.
        self._outputs: list[tuple[IO[bytes], IO[bytes]]] = []
        try:
            for rank in range(world):
                place = {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(world),
                    "LOCAL_RANK": str(rank),
                    "LOCAL_WORLD_SIZE": str(world),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
                output = tempfile.TemporaryFile(), tempfile.TemporaryFile()
                self._outputs.append(output)
                self.processes.append(
                    subprocess.Popen(
                        command,
                        env=inherited | place | dict(env or {}),
                        cwd=cwd,
                        stdin=subprocess.DEVNULL,
                        stdout=output[0],
                        stderr=output[1],
                    )
                )
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Kills the ranks that still run, and closes their output."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait()
        for output in self._outputs:
            for file in output:
                file.close()

    def output(self, rank: int) -> tuple[str, str]:
        """What a rank has written to stdout and stderr so far."""
        texts = []
        for file in self._outputs[rank]:
            size = os.fstat(file.fileno()).st_size
            # pread: the position belongs to the rank, which goes on writing there.
            texts.append(os.pread(file.fileno(), size, 0).decode(errors="replace"))
        return texts[0], texts[1]

    def wait(self, timeout: float) -> list[RankResult]:
        """The results, in the order of the ranks. AssertionError, with all output, if a rank still runs after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                running = [rank for rank, each in enumerate(self.processes) if each.poll() is None]
                said = "\n".join(f"rank {rank}: {self.output(rank)}" for rank in range(len(self.processes)))
                raise AssertionError(f"ranks {running} still run after {timeout} s\n{said}") from None
        return [
            RankResult(rank, process.returncode, *self.output(rank)) for rank, process in enumerate(self.processes)
        ]


def run_ranks(
    world: int,
    args: Sequence[str | Path],
    timeout: float = 120,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> list[RankResult]:
    """Runs `conclave *args` on `world` ranks to its end. No rank outlives the call."""
    with Ranks(world, args, env=env, cwd=cwd) as ranks:
        return ranks.wait(timeout)


def succeed(results: Sequence[RankResult]) -> None:
    """Asserts that every rank ended with 0; the message holds what the others said."""
    failed = [result for result in results if result.returncode != 0]
    assert not failed, "\n".join(
        f"rank {result.rank} ended with {result.returncode}\n{result.stdout}{result.stderr}" for result in failed
    )

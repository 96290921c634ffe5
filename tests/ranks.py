"""Starts the ranks of one `conclave` command as processes of this machine, without a launcher.

Each rank gets the variables that torchrun would set; rank 0 serves the store itself. It saves the seconds that torchrun takes to start, and leaves each
rank's process, output and exit code to the test.
"""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 120  # no test waits longer for a job that should end by itself; nothing is asserted about less
# Below the range that Linux gives to outgoing connections, so that none of those takes the port before rank 0 does.
PORTS = range(20000, 32000)
LAUNCHER_PREFIXES = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "MPI_", "MV2_", "TORCHELASTIC_")
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CONCLAVE_MEETING", "CONCLAVE_SECRET_FILE")


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


def without_launcher() -> dict[str, str]:
    """This process's environment without what a launcher has put there."""
    return {name: value for name, value in os.environ.items()
            if name not in LAUNCHER_VARIABLES and not name.startswith(LAUNCHER_PREFIXES)}


@dataclass(frozen=True)
class Ended:
    """How ranks ended: exit codes (minus the signal of a killed one) and what each wrote on standard output and error."""

    codes: list[int]
    outputs: list[str]
    errors: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.outputs + self.errors)

    @property
    def error_lines(self) -> list[str]:
        return [line for text in self.errors for line in text.splitlines() if line.startswith("error:")]


class Ranks:
    """Running ranks; a context manager that leaves none of them running.

    `processes[r]` is rank r's process, for tests that stop or kill it.
    """

    def __init__(self, world: int, args: Sequence[str | Path], *, env: Mapping[str, str] | None = None,
                 env_of_rank: Mapping[int, Mapping[str, str]] | None = None, cwd: Path | None = None,
                 launcher: Sequence[str] = (), launcher_of_rank: Mapping[int, Sequence[str]] | None = None) -> None:
        """Starts `world` ranks of `conclave *args`; one rank is a process without a launcher's variables.

        `env`: variables on top of this process's own, for all ranks; `env_of_rank`: for one of them. `launcher`: words before the program, such as
        torchrun's; then `world` is 1, and the launcher is the one process. `launcher_of_rank`: the same for one rank, to run it on another host.
        """
        command = [str(program()), *map(str, args)]
        port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        # Files, not pipes: a rank that writes much must not wait for a reader.
        self._outputs: list[tuple[IO[bytes], IO[bytes]]] = []
        try:
            for rank in range(world):
                place = {} if world == 1 else {
                    "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                }
                output = tempfile.TemporaryFile(), tempfile.TemporaryFile()
                self._outputs.append(output)
                words = (launcher_of_rank or {}).get(rank, launcher)
                self.processes.append(subprocess.Popen(
                    [*words, *command], env=without_launcher() | place | dict(env or {}) | dict((env_of_rank or {}).get(rank, {})), cwd=cwd,
                    stdin=subprocess.DEVNULL, stdout=output[0], stderr=output[1]))
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def kill(self) -> None:
        """Kills the ranks that still run."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait()

    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Sends a signal to some ranks, or to all."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            self.processes[rank].send_signal(number)

    def output(self, rank: int) -> tuple[str, str]:
        """What a rank has written to stdout and stderr so far."""
        texts = []
        for file in self._outputs[rank]:
            size = os.fstat(file.fileno()).st_size
            # pread: the position belongs to the rank, which goes on writing there.
            texts.append(os.pread(file.fileno(), size, 0).decode(errors="replace"))
        return texts[0], texts[1]

    def wait(self, seconds: float = PATIENCE_SECONDS) -> Ended:
        """Waits for all ranks. Ranks that are still there after `seconds` are killed, and that fails the test."""
        until = time.monotonic() + seconds
        late = []
        for rank, process in enumerate(self.processes):
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                late.append(rank)
        self.kill()
        outputs, errors = zip(*(self.output(rank) for rank in range(len(self.processes))))
        ended = Ended([process.wait() for process in self.processes], list(outputs), list(errors))
        assert not late, f"ranks {late} did not end within {seconds} s:\n{ended.text}"
        return ended

    def wait_until(self, is_so: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Returns when `is_so()`; fails if a rank ends before, or if it takes too long."""
        until = time.monotonic() + seconds
        while not is_so():
            ended = [process.poll() for process in self.processes]
            if any(code is not None for code in ended) or time.monotonic() > until:
                text = self.wait(0.0 if time.monotonic() > until else PATIENCE_SECONDS).text
                raise AssertionError(f"{what} was not seen; exit codes {ended}:\n{text}")
            time.sleep(0.02)


def process_of_rank(word: str, rank: int) -> int:
    """The process of a rank that a launcher started, by a word of its command line that no other job's has."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue  # ended meanwhile
        if command.startswith(str(program()).encode()) and word.encode() in command and re.search(rb"(?:^|\0)RANK=%d\0" % rank, environment):
            return int(process.name)
    raise AssertionError(f"rank {rank} has no process")


def run_ranks(world: int, args: Sequence[str | Path], timeout: float = PATIENCE_SECONDS, **places) -> Ended:
    """Runs `conclave *args` on `world` ranks to its end. No rank outlives the call. `places`: as Ranks takes them."""
    with Ranks(world, args, **places) as ranks:
        return ranks.wait(timeout)


def succeed(ended: Ended) -> Ended:
    """Asserts that every rank ended with 0; the message holds what they said."""
    assert ended.codes == [0] * len(ended.codes), f"exit codes {ended.codes}\n{ended.text}"
    return ended

"""Runs the `conclave` program as the ranks of a world on this machine: each a process of its own, as a launcher would start it.

torchrun needs seconds to start; these tests start many small worlds, so they set the variables themselves (src/comm/process.h).
"""

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("CONCLAVE_PROGRAM", str(ROOT / "build" / "conclave"))


@dataclass
class Ended:
    code: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout + self.stderr


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(world: int, arguments: list[str]) -> list[subprocess.Popen]:
    """Start `conclave ARGUMENTS` as every rank of a world."""
    port = str(_free_port())
    processes = []
    for rank in range(world):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMPI", "TORCHELASTIC"))}
        if world > 1:
            environment |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
                            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(subprocess.Popen([PROGRAM, *map(str, arguments)], env=environment, text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    return processes


def end_ranks(processes: list[subprocess.Popen], timeout: float = 240) -> list[Ended]:
    """Wait for all ranks; a rank that does not end in time is killed and reported with the code of the signal."""
    ended = []
    for process in processes:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
        ended.append(Ended(process.returncode, stdout, stderr))
    return ended


def run_ranks(world: int, *arguments: object) -> list[Ended]:
    return end_ranks(start_ranks(world, list(arguments)))


def must_run(world: int, *arguments: object) -> list[Ended]:
    ended = run_ranks(world, *arguments)
    assert all(rank.code == 0 for rank in ended), "\n".join(f"rank {i}: exit code {rank.code}\n{rank.text}" for i, rank in enumerate(ended))
    return ended


def set_options(**keys: object) -> list[str]:
    """set_options(parallel__expert_parallel_degree=2) is --set parallel.expert_parallel_degree=2."""
    return [part for key, value in keys.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]

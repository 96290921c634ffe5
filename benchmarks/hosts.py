"""Two hosts emulated on this machine: network namespaces joined by a link that is held to a rate by tc. Needs root, `ip` and `tc`."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

HOSTS = ("conclave-bench-0", "conclave-bench-1")
ADDRESS = "10.213.77.{}"
PORT = 29617


class HostsError(RuntimeError):
    """The hosts could not be made; the message is the system's."""


def _system(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise HostsError(f"`{' '.join(words)}` ended with {done.returncode}: {done.stderr.strip()}")


def _remove_hosts() -> None:
    for host in HOSTS:
        subprocess.run(["ip", "netns", "delete", host], capture_output=True)


@contextmanager
def two_hosts(rate: str) -> Iterator[None]:
    """Each sends at most `rate`, as tc has it (1gbit). Those of a run that was killed are removed first; these are at the end, also after SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    _remove_hosts()
    try:
        for host in HOSTS:
            _system("ip", "netns", "add", host)
        _system("ip", "link", "add", "cbench0", "netns", HOSTS[0], "type", "veth", "peer", "name", "cbench1", "netns", HOSTS[1])
        for i, host in enumerate(HOSTS):
            _system("ip", "-n", host, "address", "add", ADDRESS.format(i + 1) + "/24", "dev", f"cbench{i}")
            for device in ("lo", f"cbench{i}"):
                _system("ip", "-n", host, "link", "set", device, "up")
            _system("tc", "-n", host, "qdisc", "add", "dev", f"cbench{i}", "root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms")
        yield
    finally:
        _remove_hosts()


def start_two_ranks(command: list, hosts: bool, environment: dict | None = None, **streams) -> list[subprocess.Popen]:
    """`command` as ranks 0 and 1, of one thread each: on the two hosts (in `with two_hosts(...)`), or on this one. A host has half of the cores, a rank its own."""
    ranks = []
    cores = sorted(os.sched_getaffinity(0))
    for rank in range(2):
        own = set(cores[rank * len(cores) // 2:(rank + 1) * len(cores) // 2]) if hosts else set(cores)
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {}), "RANK": str(rank), "WORLD_SIZE": "2",
                     "LOCAL_RANK": "0" if hosts else str(rank), "LOCAL_WORLD_SIZE": "1" if hosts else "2",
                     "MASTER_ADDR": ADDRESS.format(1) if hosts else "127.0.0.1", "MASTER_PORT": str(PORT)}
        words = ["ip", "netns", "exec", HOSTS[rank], "env", f"GLOO_SOCKET_IFNAME=cbench{rank}"] if hosts else []
        ranks.append(subprocess.Popen([*words, *map(str, command)], env=variables, preexec_fn=lambda own=own: os.sched_setaffinity(0, own or cores), **streams))
    return ranks

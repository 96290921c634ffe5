"""Hosts emulated on this machine: network namespaces joined by a bridge. Needs root and `ip`; where they cannot be made, tests are skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    namespace: str
    address: str

    @property
    def command(self) -> list[str]:
        """Words before a command that is to run there."""
        return ["ip", "netns", "exec", self.namespace]


def _system(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"`{' '.join(words)}`: {done.stderr.strip()}")


def _make(hosts: list[Host], bridge: Host) -> None:
    for host in (bridge, *hosts):
        _system("ip", "netns", "add", host.namespace)
        _system("ip", "-n", host.namespace, "link", "set", "lo", "up")
    _system("ip", "-n", bridge.namespace, "link", "add", "bridge", "type", "bridge")
    _system("ip", "-n", bridge.namespace, "link", "set", "bridge", "up")
    for number, host in enumerate(hosts):
        _system("ip", "link", "add", "eth0", "netns", host.namespace, "type", "veth", "peer", "name", f"port{number}", "netns", bridge.namespace)
        _system("ip", "-n", bridge.namespace, "link", "set", f"port{number}", "master", "bridge", "up")
        _system("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        _system("ip", "-n", host.namespace, "link", "set", "eth0", "up")
        _system("ip", "-n", host.namespace, "route", "add", "default", "via", bridge.address)


@contextmanager
def hosts_of_a_network(count: int) -> Iterator[list[Host]]:
    """So many hosts, each with an address of its own and a default route. They are gone afterwards."""
    if os.geteuid() != 0:
        pytest.skip("only root may make network namespaces")
    if shutil.which("ip") is None:
        pytest.skip("`ip` of Debian's iproute2 makes network namespaces, and is not there")
    name = f"conclave-{os.getpid()}"
    bridge = Host(f"{name}-bridge", "10.219.0.254")
    hosts = [Host(f"{name}-{number}", f"10.219.0.{number + 1}") for number in range(count)]
    try:
        try:
            _make(hosts, bridge)
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield hosts
    finally:
        for host in (bridge, *hosts):
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True)


def one_rank_a_host(hosts: list[Host]) -> dict:
    """What `SmallJob.run` takes so that each rank runs on a host of its own."""
    return {"env": {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": hosts[0].address},
            "launcher_of_rank": {rank: host.command for rank, host in enumerate(hosts)}}

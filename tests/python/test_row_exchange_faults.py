"""How CPU ranks of a PyTorch script exchange rows where something goes wrong: a rank that is lost, a process that is forked, a script that ends in its own way,
a system that lets no process read another one's memory.
"""

import ctypes
import os
import platform
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks import free_port
from row_exchange import LIBC, needs_memory, memory_links, axis_of, compute, same_bits, bytes_read
from torch_ranks import ROOT, run_torch_ranks

from conclave._library import operators


def in_child(function: Callable[..., str], *arguments) -> str:
    """What the function returned in a forked process: one that may be stopped, or end, without ending the test's rank. "": it ended before."""
    file = tempfile.NamedTemporaryFile()
    child = os.fork()
    if child == 0:
        try:
            Path(file.name).write_text(function(*arguments))
        except BaseException as error:
            Path(file.name).write_text(f"unexpected: {error!r}")
        os._exit(0)
    os.waitpid(child, 0)
    return Path(file.name).read_text()


def lose_a_rank(how: str, by_memory: bool, seconds: int) -> str:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    operators().use_memory_links(by_memory)
    axis = axis_of(dist.group.WORLD)
    compute(axis)
    dist.barrier()
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), dist.group.WORLD)  # not of the start, which a busy machine makes long
    if dist.get_rank() == 1:
        if how == "ended":
            os._exit(0)
        time.sleep(seconds + 8)
        os._exit(0)
    started = time.monotonic()
    try:
        compute(axis)
    except RuntimeError as error:
        return f"after {time.monotonic() - started:.1f} s: {error}"
    return "no error"


def losses(*arguments) -> str:
    return in_child(lose_a_rank, *arguments)


@pytest.mark.parametrize("by_memory", [pytest.param(True, marks=needs_memory), False], ids=["memory", "sockets"])
@pytest.mark.parametrize(("how", "seconds", "words"), [
    ("ended", 60, r"rank 1 is lost: .*; this rank \(0\) was in all_to_all #\d+ of the expert axis"),
    ("hung", 4, r"rank 1 did not come to all_to_all #\d+ of the expert axis within 4 s; this is rank 0"),
], ids=["ended", "hung"])
def test_a_lost_rank_is_named(how, seconds, words, by_memory):
    error = run_torch_ranks(2, losses, how, by_memory, seconds, initialize=False)[0]
    assert re.fullmatch(rf"after [\d.]+ s: {words}", error, re.DOTALL), error
    assert ("its process has ended" in error) == (how == "ended" and by_memory)
    assert float(error.split()[1]) < 30  # of 60: nobody waits for a rank that has ended


def check_forked_child() -> None:
    """A child, such as a loader's worker, that is forked while another thread waits for the other rank: it has inherited a lock that nobody will release, and
    a link without the link's thread. It ends by itself, and its parent goes on."""
    group, rank = dist.new_group([0, 1]), dist.get_rank()
    axis, seen = axis_of(group), []
    thread = threading.Thread(target=lambda: seen.append(compute(axis)))
    if rank == 1:
        time.sleep(2)
    thread.start()
    time.sleep(0.5)
    if rank == 0 and (child := os.fork()) == 0:
        LIBC.exit(3 if operators().group_traffic(group.group_name) == [0, 0] else 4)
    thread.join(60)
    for _ in range(20):
        assert same_bits(compute(axis), seen[0])
    if rank == 0:
        until = time.monotonic() + 30
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
            time.sleep(0.1)
        if ended[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the forked child did not end within 30 s")
        assert os.waitstatus_to_exitcode(ended[1]) == 3
    assert same_bits(compute(axis), seen[0])


@needs_memory
def test_a_forked_child_knows_of_no_link():
    run_torch_ranks(2, check_forked_child)


@needs_memory
@pytest.mark.parametrize("end", ["", "dist.destroy_process_group()", "dist.destroy_process_group(); del axis"])
def test_a_script_ends_in_whatever_order(end):
    """The interpreter's own end, which the ranks of the other tests leave out."""
    script = ("import torch.distributed as dist; from row_exchange import axis_of, bytes_read, compute; dist.init_process_group('gloo'); "
              f"axis = axis_of(dist.group.WORLD); compute(axis); assert bytes_read(dist.group.WORLD) > 0; {end}")
    port = str(free_port())
    places = [{"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for rank in range(2)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [ROOT / "python", ROOT / "tests", ROOT / "tests/python"])), "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([sys.executable, "-c", script], env=environment | place, stderr=subprocess.PIPE, text=True) for place in places]
    texts = [rank.communicate(timeout=100)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], texts


def forbid_reading() -> None:
    """From now on process_vm_readv(2) of this process fails, as in a container that forbids it."""
    number = {"x86_64": 310, "aarch64": 270}[platform.machine()]
    program = b"".join(struct.pack("HBBI", *line) for line in [
        (0x20, 0, 0, 0),  # load the call's number
        (0x15, 0, 1, number),  # if it is that one
        (0x06, 0, 0, 0x00050001),  # EPERM
        (0x06, 0, 0, 0x7FFF0000)])  # else allow
    lines = ctypes.create_string_buffer(program)
    filters = struct.pack("HxxxxxxP", 4, ctypes.addressof(lines))
    assert LIBC.prctl(38, 1, 0, 0, 0) == 0 and LIBC.prctl(22, 2, filters, 0, 0) == 0


def check_forbidden(by: str) -> str:
    rank, world = dist.get_rank(), dist.group.WORLD
    with memory_links(False):
        expected = compute(axis_of(world))
    if by == "all" or rank == 1:
        forbid_reading()
    said = tempfile.TemporaryFile()
    stderr = os.dup(2)
    os.dup2(said.fileno(), 2)
    try:
        seen = [compute(axis_of(world)) for _ in range(2)]
    finally:
        os.dup2(stderr, 2)
    assert all(same_bits(each, expected) for each in seen)
    assert bytes_read(world) == 0
    said.seek(0)
    return said.read().decode()


@needs_memory
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the number of the system's call is known for these")
def test_where_the_system_forbids_it_sockets_carry_the_rows():
    said = run_torch_ranks(2, check_forbidden, "all")
    assert said[0].count("cannot read the memory of rank 1 on this host") == 1 and "sockets" in said[0], said
    assert not said[1], "one rank speaks for all"
    run_torch_ranks(2, check_forbidden, "one")

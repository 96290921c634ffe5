"""How CPU ranks of a PyTorch script exchange rows: by reading each other's memory, by the group's sockets where they cannot, and never otherwise than that.

Oracle: the same operators over sockets, to the bit; what they compute is held against a plain loop by test_moe_operators.py. That memory is what carried
the rows is counted by the ranks that read them.
"""

import ctypes
import errno
import os
import platform
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import free_port
from torch_ranks import ROOT, run_torch_ranks

import conclave
from conclave._library import operators
from conclave.experts import ExpertAxis, experts_forward

HIDDEN, INTERMEDIATE, EXPERTS = 24, 16, 8
WAYS = ({}, {"overload": "spill", "spill_least_rows": 1}, {"overload": "chunk", "max_tokens_per_rank_factor": 1.0}, {"dispatch_chunks": 3})
LIBC = ctypes.CDLL(None, use_errno=True)


def system_lets_read() -> bool:
    source, target = ctypes.create_string_buffer(b"x", 1), ctypes.create_string_buffer(1)
    own, other = (struct.pack("PN", ctypes.addressof(buffer), 1) for buffer in (target, source))
    return LIBC.process_vm_readv(os.getpid(), own, 1, other, 1, 0) == 1


needs_memory = pytest.mark.skipif(not system_lets_read(), reason="no process may read another one's memory here")


@contextmanager
def memory_links(use: bool) -> Iterator[None]:
    operators().use_memory_links(use)
    try:
        yield
    finally:
        operators().use_memory_links(True)


def axis_of(group: dist.ProcessGroup, **way) -> ExpertAxis:
    return axis_named(group.group_name, group.size(), **way)


def axis_named(group: str, degree: int, **way) -> ExpertAxis:
    return ExpertAxis(None, group, degree, EXPERTS, conclave.MoEConfig(**way))  # no mesh, which would keep groups: they are made by hand here


def compute(axis: ExpertAxis, tokens: int = 50, seed: int = 3) -> list[torch.Tensor]:
    """Output and gradients of a layer's experts on this rank."""
    random = torch.Generator().manual_seed(seed + dist.get_rank())
    local = EXPERTS // axis.degree
    leaves = [(torch.randn(*shape, generator=random) * 0.2).requires_grad_()
              for shape in ((tokens, HIDDEN), (tokens, 2), (local, 2 * INTERMEDIATE, HIDDEN), (local, HIDDEN, INTERMEDIATE))]
    choice = torch.randint(0, EXPERTS, (tokens, 2), generator=random)
    choice[::3] = 1  # more for one expert than for others
    out = experts_forward(axis, leaves[0], choice, *leaves[1:])
    out.backward(torch.randn(tokens, HIDDEN, generator=random))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def same_bits(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def bytes_read(group: dist.ProcessGroup) -> int:
    return operators().group_traffic(group.group_name)[1]


def check_bits_and_bytes() -> None:
    world = dist.group.WORLD
    logits = torch.randn(40, EXPERTS, generator=torch.Generator().manual_seed(dist.get_rank())) * 2
    for way in WAYS:
        axis = axis_of(world, **way)
        for tokens in (0, 1, 300):
            with memory_links(False):
                calls, read = operators().group_traffic(world.group_name)
                by_sockets = [*compute(axis, tokens), operators().sinkhorn_choice(logits, 2, world.group_name)]
                assert operators().group_traffic(world.group_name)[0] > calls and bytes_read(world) == read
            by_memory = [*compute(axis, tokens), operators().sinkhorn_choice(logits, 2, world.group_name)]
            assert bytes_read(world) > read
            assert same_bits(by_memory, by_sockets), f"{way}, {tokens} tokens"
    # All tokens are for the last rank's last expert, which reads them; the others read what comes back.
    tokens, others, last = 100, dist.get_world_size() - 1, dist.get_rank() == dist.get_world_size() - 1
    local = EXPERTS // dist.get_world_size()
    read = bytes_read(world)
    experts_forward(axis_of(world), torch.randn(tokens, HIDDEN), torch.full((tokens, 1), EXPERTS - 1), torch.ones(tokens, 1),
                    torch.randn(local, 2 * INTERMEDIATE, HIDDEN), torch.randn(local, HIDDEN, INTERMEDIATE))
    rows = tokens * HIDDEN * 4 * (others if last else 1)
    grown = bytes_read(world) - read
    assert rows <= grown < 1.3 * rows, f"{grown} bytes for {rows} of rows, and how many there are"


@needs_memory
@pytest.mark.parametrize("ranks", [2, 4])
def test_memory_carries_the_rows_and_changes_no_bit(ranks):
    run_torch_ranks(ranks, check_bits_and_bytes)


def check_groups() -> None:
    """Of four ranks: both halves at once, all, a group that two never enter, and groups used by several threads at the same time."""
    rank = dist.get_rank()
    halves = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    odd = [dist.new_group([1, 3]) for _ in range(2)]  # the same ranks: two groups all the same
    groups = [halves[rank // 2], dist.group.WORLD, *(odd if rank % 2 else [])]
    axes = [axis_of(group) for group in groups]
    with memory_links(False):
        expected = [compute(axis) for axis in axes]
    for _ in range(3):
        for group, axis, right in zip(groups, axes, expected, strict=True):
            read = [bytes_read(each) for each in groups]
            assert same_bits(compute(axis), right)
            grown = [bytes_read(each) > before for each, before in zip(groups, read, strict=True)]
            assert grown == [each is group for each in groups]

    # Groups that meet for the first time, in another order on each rank.
    fresh = [dist.new_group([0, 1, 2, 3]) for _ in range(2)]
    axes, seen = [axis_of(group) for group in fresh], {}

    def use(number: int) -> None:
        time.sleep(0.3 * (number == rank % 2))
        seen[number] = [compute(axes[number]) for _ in range(10)]

    threads = [threading.Thread(target=use, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(same_bits(each, expected[1]) for number in range(2) for each in seen[number])
    assert all(bytes_read(group) > 0 for group in fresh)


@needs_memory
def test_groups_of_a_process_do_not_know_of_each_other():
    run_torch_ranks(4, check_groups)


def threads_now() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def check_groups_made_again(ports: list[int]) -> None:
    """The default group destroyed and made again; groups destroyed alone, and made again in the same store."""
    seen, threads = [], []
    for port in ports:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(os.environ["RANK"]), world_size=2)
        for _ in range(2):
            group = dist.new_group([0, 1])
            for each in (dist.group.WORLD, group):
                seen.append(compute(axis_of(each)))
                assert bytes_read(each) > 0
            dist.destroy_process_group(group)
            del each, group
        compute(axis_of(dist.group.WORLD))
        threads.append(threads_now())
        dist.barrier()
        dist.destroy_process_group()
        # Rank 0 served the store, which has gone with the group: another group may do so at the same address.
        with socket.socket() as probe:
            assert int(os.environ["RANK"]) == 1 or probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
    assert all(same_bits(each, seen[0]) for each in seen)
    assert threads == [threads[0]] * len(ports), f"{threads} threads: links outlive their groups"


@needs_memory
def test_groups_are_destroyed_and_made_again():
    run_torch_ranks(2, check_groups_made_again, [free_port() for _ in range(3)], initialize=False)


def check_old_store(port: int) -> None:
    """As under torchrun, whose store outlives the groups: there is everything in it that groups of the same names have left."""
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=dist.get_rank() == 0)
    group = dist.new_group([0, 1])
    seen = []
    for _ in range(40):  # the same keys again, those of Gloo apart; often, for the ranks must miss each other for old ones to be read
        again = dist.ProcessGroup(dist.PrefixStore("again", store), dist.get_rank(), 2)
        again._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, group._get_backend(torch.device("cpu")))
        again._set_group_name("again")
        torch._C._distributed_c10d._register_process_group("again", again)
        seen.append(compute(axis_of(again)))
        assert bytes_read(again) > 0
        torch._C._distributed_c10d._unregister_process_group("again")
        del again
    assert all(same_bits(each, seen[0]) for each in seen)
    dist.barrier()


@needs_memory
def test_what_an_older_group_left_in_the_store_does_not_matter():
    run_torch_ranks(2, check_old_store, free_port())


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
    dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    operators().use_memory_links(by_memory)
    axis = axis_of(dist.group.WORLD)
    compute(axis)
    dist.barrier()
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
    script = ("import torch.distributed as dist; from test_row_exchange import axis_of, bytes_read, compute; dist.init_process_group('gloo'); "
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


class OtherGroup(dist.ProcessGroup):
    """A group of somebody's own making, whose collectives are methods in Python; here they are Gloo's."""

    def __init__(self, gloo: dist.ProcessGroup):
        super().__init__(gloo.rank(), gloo.size())
        self.gloo, self.calls = gloo, 0

    def alltoall_base(self, *arguments):
        self.calls += 1
        return self.gloo.alltoall_base(*arguments)

    def getBackendName(self) -> str:
        return "other"


def check_other_groups() -> None:
    world = dist.group.WORLD
    other = OtherGroup(dist.new_group([0, 1]))
    torch._C._distributed_c10d._register_process_group("other", other)
    axis = axis_named("other", 2)
    assert same_bits(compute(axis), compute(axis_of(world)))
    assert other.calls == 5  # forward: counts, rows there and back; backward: gradients there and back
    assert operators().group_traffic("other") == [0, 0]
    torch._C._distributed_c10d._unregister_process_group("other")


def test_groups_that_are_not_gloo_move_the_rows_themselves():
    run_torch_ranks(2, check_other_groups)

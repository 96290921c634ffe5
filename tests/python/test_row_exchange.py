"""How CPU ranks of a PyTorch script exchange rows: by reading each other's memory, by the group's sockets where they cannot, and never otherwise than that.

Oracle: the same operators over sockets, to the bit; what they compute is held against a plain loop by test_moe_operators.py. That memory is what carried
the rows is counted by the ranks that read them.
"""

import errno
import os
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import free_port
from row_exchange import HIDDEN, INTERMEDIATE, EXPERTS, needs_memory, memory_links, axis_of, axis_named, compute, same_bits, bytes_read, sinkhorn_choice
from torch_ranks import run_torch_ranks

from conclave._library import operators
from conclave.experts import experts_forward

WAYS = ({}, {"overload": "spill", "spill_least_rows": 1}, {"overload": "chunk", "max_tokens_per_rank_factor": 1.0}, {"dispatch_chunks": 3})


def check_bits_and_bytes() -> None:
    world = dist.group.WORLD
    logits = torch.randn(40, EXPERTS, generator=torch.Generator().manual_seed(dist.get_rank())) * 2
    for way in WAYS:
        axis = axis_of(world, **way)
        for tokens in (0, 1, 300):
            with memory_links(False):
                calls, read = operators().group_traffic(world.group_name)
                by_sockets = [*compute(axis, tokens), sinkhorn_choice(logits, 2, world.group_name)]
                assert operators().group_traffic(world.group_name)[0] > calls and bytes_read(world) == read
            by_memory = [*compute(axis, tokens), sinkhorn_choice(logits, 2, world.group_name)]
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
    logits = torch.randn(40, EXPERTS, generator=torch.Generator().manual_seed(dist.get_rank()))
    assert same_bits(compute(axis), compute(axis_of(world)))
    assert other.calls == 5  # forward: counts, rows there and back; backward: gradients there and back
    assert torch.equal(*(sinkhorn_choice(logits, 2, name) for name in ("other", world.group_name)))
    assert operators().group_traffic("other") == [0, 0]
    torch._C._distributed_c10d._unregister_process_group("other")


def test_groups_that_are_not_gloo_move_the_rows_themselves():
    run_torch_ranks(2, check_other_groups)


def check_detail() -> None:
    """c10d wants every rank to have called it as often as the others; ranks do not send equally many messages."""
    logits = torch.randn(40, EXPERTS, generator=torch.Generator().manual_seed(dist.get_rank()))
    seen = []
    for level in (dist.DebugLevel.OFF, dist.DebugLevel.DETAIL):
        dist.set_debug_level(level)
        group = dist.new_group([0, 1, 2, 3])
        seen.append([*compute(axis_of(group)), sinkhorn_choice(logits, 2, group.group_name)])
        dist.barrier(group)
        assert (operators().group_traffic(group.group_name) == [0, 0]) == (level == dist.DebugLevel.DETAIL)
    assert same_bits(*seen)
    dist.set_debug_level(dist.DebugLevel.OFF)


def test_c10d_checks_its_collectives():
    run_torch_ranks(4, check_detail)

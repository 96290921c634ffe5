"""What the tests of how CPU ranks of a PyTorch script exchange rows share."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import conclave
from conclave._library import operators
from conclave.experts import ExpertAxis, LayerLoad, experts_forward

HIDDEN, INTERMEDIATE, EXPERTS = 24, 16, 8
LIBC = ctypes.CDLL(None, use_errno=True)


def system_lets_read() -> bool:
    source, target = ctypes.create_string_buffer(b"x", 1), ctypes.create_string_buffer(1)
    own, other = (struct.pack("PN", ctypes.addressof(buffer), 1) for buffer in (target, source))
    return LIBC.process_vm_readv(os.getpid(), own, 1, other, 1, 0) == 1


needs_memory = pytest.mark.skipif(not system_lets_read(), reason="no process may read another one's memory here")


def sinkhorn_choice(logits: torch.Tensor, top_k: int, group: str) -> torch.Tensor:
    return operators().choose_experts(logits, top_k, "sinkhorn", None, 0.01, 50, None, "probability", True, group)[0]


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
    return ExpertAxis(SimpleNamespace(spans_hosts=False), group, degree, EXPERTS, conclave.MoEConfig(**{"overload": "none", **way}), LayerLoad(EXPERTS))  # a mesh would keep groups: they are made by hand here


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

"""FSDP2's gathers and reductions by the memory link between ranks of one host, instead of Gloo's sends."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from conclave._library import operators

DTYPES = (torch.float32, torch.bfloat16)


class LinkAllGather(DefaultAllGather):
    """Waits in the call: a rank reads what the others hold, and nothing is left to wait for."""

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, async_op: bool = False) -> dist.Work | None:
        if output_tensor.device.type != "cpu" or output_tensor.dtype not in DTYPES:
            return super().__call__(output_tensor, input_tensor, group, async_op)
        operators().all_gather_(output_tensor, input_tensor, group.group_name)
        return None


class LinkReduceScatter(DefaultReduceScatter):
    """Sums in rank order."""

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, op: dist.ReduceOp,
                 async_op: bool = False) -> dist.Work | None:
        if output_tensor.device.type != "cpu" or output_tensor.dtype not in DTYPES or op not in (dist.ReduceOp.SUM, dist.ReduceOp.AVG):
            return super().__call__(output_tensor, input_tensor, group, op, async_op)
        operators().reduce_scatter_(output_tensor, input_tensor, group.group_name)
        if op == dist.ReduceOp.AVG:
            output_tensor /= group.size()
        return None


def gather_by_memory(module: FSDPModule) -> None:
    module.set_custom_all_gather(LinkAllGather())
    module.set_custom_reduce_scatter(LinkReduceScatter())

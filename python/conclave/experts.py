"""The experts of one layer, divided over the ranks of the expert axis, inside PyTorch's autograd."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor

from conclave._library import operators, take_cuda_kernels
from conclave.activation_checkpointing import repeats_arithmetic
from conclave.mesh import Mesh
from conclave.moe_config import MoEConfig


@dataclass
class ExpertAxis:
    """The ranks that divide a layer's experts, and the layer's load since it was last asked for."""

    mesh: Mesh
    group: str  # the name PyTorch knows the process group by; "": no other rank
    degree: int
    experts: int  # of the whole layer
    config: MoEConfig
    load: torch.Tensor | None = None  # int64 [E]: this rank's choices in training

    @classmethod
    def of(cls, mesh: Mesh, experts: int, config: MoEConfig | None = None) -> ExpertAxis:
        """`config`: None: that of conclave.init."""
        axis = mesh.expert
        return cls(mesh, axis.get_group().group_name if axis.size() > 1 else "", axis.size(), experts, mesh.moe if config is None else config)

    def count(self, expert_of_choice: torch.Tensor) -> None:
        count = torch.bincount(expert_of_choice.detach().flatten(), minlength=self.experts)
        self.load = count if self.load is None else self.load.add_(count)

    def take_load(self) -> torch.Tensor:
        load = torch.zeros(self.experts, dtype=torch.int64, device=self.mesh.device_type) if self.load is None else self.load
        self.load = None
        return load


def _local(parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).to(dtype)


@torch.compiler.disable  # rows follow the routing: their number is not a graph's to know
def experts_forward(axis: ExpertAxis, hidden: torch.Tensor, expert_of_choice: torch.Tensor, weight: torch.Tensor, gate_up: torch.Tensor,
                    down: torch.Tensor) -> torch.Tensor:
    """The weighted sum of each token's experts, wherever they are. Collective over the axis, also with no token.

    hidden [T,H]; expert_of_choice [T,K] global expert numbers; weight [T,K]; gate_up [L,2I,H] and down [L,H,I] of this rank's experts. They compute
    in the dtype of `hidden` (under autocast in autocast's); the result [T,H] has the dtype of `hidden`. Gradients of gate_up and down
    are the mean over the axis's ranks.
    """
    device = hidden.device.type
    if device == "cuda":
        take_cuda_kernels()
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    recomputed = torch._C._current_graph_task_id() != -1  # by backward
    if torch.is_grad_enabled() and not recomputed:
        axis.count(expert_of_choice)
    out = operators().routed_experts(hidden.to(dtype), weight.float(), expert_of_choice, _local(gate_up, dtype), _local(down, dtype), axis.group,
                                     axis.experts, 1.0 / axis.degree, axis.config.overload, axis.config.max_tokens_per_rank_factor,
                                     axis.config.spill_threshold, axis.config.spill_least_rows, axis.config.dispatch_chunks or 1, not repeats_arithmetic())
    return out.to(hidden.dtype)

"""The experts of one layer, divided over the ranks of the expert axis, inside PyTorch's autograd."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from conclave import torch_calls
from conclave._library import operators, take_cuda_kernels
from conclave.activation_checkpointing import repeats_arithmetic
from conclave.errors import UnsupportedError
from conclave.load import LayerLoad
from conclave.mesh import Mesh
from conclave.moe_config import MoEConfig
from conclave.regions import local_of


@dataclass
class ExpertAxis:
    """The ranks that divide a layer's experts, and the layer's load since it was last asked for."""

    mesh: Mesh
    group: str  # the name PyTorch knows the process group by; "": no other rank
    degree: int
    experts: int  # of the whole layer
    config: MoEConfig
    load: LayerLoad
    differentiated: bool = False  # whether a forward pass was ever recorded for backward

    @classmethod
    def of(cls, mesh: Mesh, experts: int, config: MoEConfig | None = None) -> ExpertAxis:
        """`config`: None: that of conclave.init."""
        torch_calls.install()
        axis = mesh.expert
        group = axis.get_group().group_name if axis.size() > 1 else ""
        return cls(mesh, group, axis.size(), experts, mesh.moe if config is None else config, LayerLoad(experts))

    @property
    def overload(self) -> str:
        return self.config.overload_on(self.mesh.spans_hosts)

    @property
    def local(self) -> int:
        """Experts of this rank."""
        return self.experts // self.degree

    @property
    def begin(self) -> int:
        """The number of this rank's first expert."""
        return self.mesh.expert.get_local_rank() * self.local

    @property
    def shuffle_seed(self) -> int | None:
        """Of the global token shuffle; None: tokens stay where they are."""
        if not self.config.global_token_shuffle:
            return None
        return self.mesh.seed if self.config.random_seed is None else self.config.random_seed


def divided(axis: ExpertAxis, own: torch.Tensor, requires_grad: bool = True) -> nn.Parameter:
    """A parameter of the layer's experts [E,...] from this rank's part `own` [L,...]: a DTensor on the expert axis, or plain where nothing is divided, so
    that what PyTorch does to plain tensors works."""
    if axis.degree > 1:
        own = DTensor.from_local(own, axis.mesh.expert, [Shard(0)], run_check=False)
    return nn.Parameter(own, requires_grad=requires_grad)


def weight_of(module: nn.Module, name: str) -> torch.Tensor:
    """This rank's part of the experts' parameter, with what adapters add to it."""
    weight = local_of(getattr(module, name))
    for lhs, rhs, scaling in module.conclave_deltas.get(name, ()):
        with torch.autocast(weight.device.type, enabled=False):  # the sum keeps the weight's dtype, as in PEFT
            weight = torch.baddbmm(weight, lhs.to(weight.dtype), rhs.to(weight.dtype), alpha=scaling)
    return weight


def module_forward(module: nn.Module, hidden: torch.Tensor, expert_of_choice: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`experts_forward` of a module with this rank's experts: `gate_up_proj`, `down_proj`, `conclave_axis`, `conclave_deltas`."""
    return experts_forward(module.conclave_axis, hidden, expert_of_choice, weight, weight_of(module, "gate_up_proj"), weight_of(module, "down_proj"),
                           counts=module.training)


@torch.compiler.disable  # rows follow the routing: their number is not a graph's to know
def experts_forward(axis: ExpertAxis, hidden: torch.Tensor, expert_of_choice: torch.Tensor, weight: torch.Tensor, gate_up: torch.Tensor,
                    down: torch.Tensor, *, counts: bool = True) -> torch.Tensor:
    """The weighted sum of each token's experts, wherever they are. Collective over the axis, also with no token.

    hidden [T,H]; expert_of_choice [T,K] global expert numbers, -1 for a choice that is dropped; weight [T,K]; gate_up [L,2I,H] and down [L,H,I] of this rank's experts. They compute
    in the dtype of `hidden` (under autocast in autocast's); the result [T,H] has the dtype of `hidden`. Gradients of gate_up and down
    are the mean over the axis's ranks. `counts`: whether the choices belong to the layer's load, as those of training do.
    """
    device = hidden.device.type
    if device == "cuda":
        take_cuda_kernels()
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if torch.is_grad_enabled():
        if torch._C._current_graph_task_id() != -1:  # computed once more by backward
            _refuse_reentrant(axis)
        else:
            axis.differentiated = True
            if counts:
                axis.load.count(expert_of_choice)
    # On a CPU the kernels round fp32 weights as they read them, and sum their gradients in fp32: nothing is copied, and nothing is lost.
    reads = device == "cpu" and dtype == torch.bfloat16 and gate_up.dtype == down.dtype == torch.float32
    gate_up, down = (local_of(each) if reads else local_of(each).to(dtype) for each in (gate_up, down))
    out = operators().routed_experts(hidden.to(dtype), weight.float(), expert_of_choice, gate_up, down, axis.group, axis.experts,
                                     1.0 / axis.degree, axis.overload, axis.config.max_tokens_per_rank_factor,
                                     axis.config.spill_threshold, axis.config.spill_least_rows, axis.config.dispatch_chunks or 1, axis.config.gathers_tokens,
                                     axis.shuffle_seed, not repeats_arithmetic())
    return out.to(hidden.dtype)


def _refuse_reentrant(axis: ExpertAxis) -> None:
    """Reentrant checkpointing is the one way into a backward pass whose forward pass recorded nothing."""
    if not axis.differentiated:
        raise UnsupportedError("the experts are inside of reentrant activation checkpointing, which loses the gradient of a balancing loss and dispatches "
                               "every token once more in backward.\n"
                               "Use model.gradient_checkpointing_enable(), or checkpoint_wrapper(..., checkpoint_impl=CheckpointImpl.NO_REENTRANT, "
                               "context_fn=conclave.checkpoint_context).")

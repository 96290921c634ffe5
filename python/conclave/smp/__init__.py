"""SMP v2's calls under their own names: a script changes `torch.sagemaker` into `conclave.smp` in its imports, and little else (docs/smp.md).

    import conclave.smp as tsm
    from conclave.smp.delayed_param import DelayedParamIniter
    from conclave.smp.fsdp import FullyShardedDataParallel as FSDP
    from conclave.smp.grad_norm import clip_grad_norm_
    from conclave.smp.moe.moe_config import MoEConfig

What SMP documents and Conclave cannot honour is refused by name, with the remedy, on all ranks.
"""

from __future__ import annotations

from conclave.smp import checkpoint
from conclave.smp.delayed_param import DelayedParamIniter, delayed_param_initialization
from conclave.smp.fsdp import FullyShardedDataParallel, offload_wrapper
from conclave.smp.grad_norm import clip_grad_norm_
from conclave.smp.moe.moe_config import MoEConfig
from conclave.smp.session import init, state, transform

__all__ = ["DelayedParamIniter", "FullyShardedDataParallel", "MoEConfig", "checkpoint", "clip_grad_norm_", "delayed_param_initialization", "init",
           "offload_wrapper", "state", "transform"]

"""conclave.AdamW: torch.optim.AdamW by the engine's kernel, one pass over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from conclave._library import operators
from conclave.errors import UnsupportedError
from conclave.regions import local_of


class AdamW(torch.optim.AdamW):
    """Equal to torch.optim.AdamW but for rounding, with the same groups and the same state (so state dicts of one load into the other).

    For fp32 parameters on CPUs, plain or sharded. Give it to `conclave.clip_grad_norm_` and the gradients are multiplied as they are read, without a pass of
    their own.

    Raises:
        UnsupportedError: `amsgrad`, `maximize`, `capturable`, `differentiable` or `foreach`; a parameter that is not fp32, or on a GPU.
    """

    def __init__(self, params: Any, lr: float | torch.Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 1e-2, **options: Any) -> None:
        asked = [name for name, value in options.items() if value and name != "fused"]
        if asked:
            raise UnsupportedError(f"conclave.AdamW has no {asked[0]}.\nLeave it out, or use torch.optim.AdamW.")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **{**options, "fused": None})
        self.grad_scale_of_next_step = 1.0  # what the next step multiplies gradients by

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for parameter in param_group["params"]:
            if parameter.dtype != torch.float32 or parameter.is_cuda:
                where = "a GPU" if parameter.is_cuda else "a CPU"
                raise UnsupportedError(f"conclave.AdamW updates fp32 parameters on CPUs, and one of {tuple(parameter.shape)} is {parameter.dtype} on {where}.\n"
                                       "Use torch.optim.AdamW(..., fused=True).")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        self.grad_scale_of_next_step = 1.0
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        by_step: dict[int, list[list[torch.Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise UnsupportedError("a gradient is sparse, and conclave.AdamW updates whole tensors.\nUse torch.optim.SparseAdam for this parameter.")
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["step"] += 1
            tensors = [local_of(each) for each in (parameter, state["exp_avg"], state["exp_avg_sq"], parameter.grad)]
            if not all(each.is_contiguous() for each in tensors[:3]):
                raise UnsupportedError(f"a parameter of {tuple(parameter.shape)} does not lie in one piece.\nUse torch.optim.AdamW for it.")
            by_step.setdefault(int(state["step"].item()), []).append(tensors)
        beta1, beta2 = group["betas"]
        for step, tensors in by_step.items():
            parameters, exp_avgs, exp_avg_sqs, grads = (list(each) for each in zip(*tensors, strict=True))
            operators().adamw_(parameters, exp_avgs, exp_avg_sqs, grads, step, float(group["lr"]), float(beta1), float(beta2), float(group["eps"]),
                               float(group["weight_decay"]), self.grad_scale_of_next_step)

"""RMSNorm, linear layers and the loss of Transformers' models by the engine's kernels."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.loss.loss_utils import ForCausalLMLoss

from conclave._library import operators
from conclave.derived_class import stand_before

DTYPES = (torch.float32, torch.bfloat16)
IGNORED = -100  # what the kernel leaves out


def _computes(*tensors: torch.Tensor) -> bool:
    """Whether the kernels take these: plain tensors of one of their dtypes on the CPU."""
    return all(tensor.device.type == "cpu" and tensor.dtype == tensors[0].dtype and not isinstance(tensor, DTensor) for tensor in tensors) \
        and tensors[0].dtype in DTYPES


class NormByKernel:
    """Stands before a class of RMSNorm."""

    @torch.compiler.disable
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not _computes(hidden_states, self.weight):
            return super().forward(hidden_states)
        return operators().rms_norm(hidden_states, self.weight, self.variance_epsilon)


def accelerate_norms(model: nn.Module) -> int | str:
    found = [module for module in model.modules() if isinstance(module, NormByKernel) or _is_rms_norm(type(module))]
    for module in found:
        stand_before(module, NormByKernel)
    return len(found) or f"{type(model).__name__} has no RMSNorm that multiplies what is normalized by its weight"


@functools.cache
def _is_rms_norm(kind: type) -> bool:
    """Whether modules of the class compute what the kernel does, by trying it: some multiply by 1 + weight."""
    if not kind.__name__.endswith("RMSNorm"):
        return False
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(3, 8, generator=generator), torch.randn(8, generator=generator)
    try:
        found = kind.forward(SimpleNamespace(weight=weight, variance_epsilon=0.1), x)
    except Exception:  # it needs something else
        return False
    return torch.allclose(found, weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1), atol=1e-6)


class LinearByKernel:
    """Stands before nn.Linear."""

    @torch.compiler.disable
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        if not _computes(x, weight) or not operators().multiplies_in_blocks(x.dtype):
            return super().forward(x)
        y = operators().linear(x, weight)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def accelerate_linear(model: nn.Module) -> int | str:
    if not operators().multiplies_in_blocks(torch.float32):
        return "this processor has no AVX512, and without it the engine's products are the library's that PyTorch calls as well"
    found = [module for module in model.modules() if isinstance(module, LinearByKernel) or type(module) is nn.Linear]
    for module in found:
        stand_before(module, LinearByKernel)
    return len(found) or f"{type(model).__name__} has no nn.Linear"


@torch.compiler.disable
def causal_lm_loss(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, num_items_in_batch: torch.Tensor | int | None = None,
                   ignore_index: int = IGNORED, shift_labels: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    """In the place of Transformers' ForCausalLMLoss: the mean over the targets that are not ignored, or the sum over `num_items_in_batch`."""
    if not _computes(logits):
        return ForCausalLMLoss(logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels, **options)
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1).to(torch.int64)
    if ignore_index != IGNORED:
        targets = torch.where(targets == ignore_index, IGNORED, targets)
    total = operators().cross_entropy(logits.reshape(-1, vocab_size), targets)
    count = (targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return (total / count).float()


def accelerate_loss(model: nn.Module) -> int | str:
    found = getattr(model, "loss_function", None)
    if found is causal_lm_loss:
        return 1
    if found is not ForCausalLMLoss:
        return f"the loss of {type(model).__name__} is not Transformers' loss of a causal language model"
    model.loss_function = causal_lm_loss
    return 1

"""Steps of training of a transformed model, held against those of one process that had the batches of all ranks.

Tolerance: fp32 sums of a few hundred terms in another order are equal within about 1e-6 of their scale. AdamW's eps is 1e-5, so that elements whose
gradient is only rounding do not step by the learning rate in a random direction; 20 steps then keep 1e-5.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from tiny_models import batches
from torch.distributed.tensor import DTensor

import conclave

TOLERANCE = 1e-5
# What the values of tensors are held against that are next to nothing.
LEAST_SCALE = 1e-2
SEED = 5


def optimizer_of(groups, kind: type[torch.optim.AdamW] = torch.optim.AdamW) -> torch.optim.AdamW:
    return kind(groups, lr=2e-3, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)


def error_of(value: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((value - expected).abs().max() / expected.abs().max().clamp_min(LEAST_SCALE)).item()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True)
class Steps:
    """What one process had: the loss and the norm of the gradient by step, and the gradients of the first."""

    losses: list[float]
    gradients: dict[str, torch.Tensor]
    norms: list[float]


def compare_steps(model, right: Steps, averages_by_itself: bool, what: str, accelerated: bool = False) -> None:
    """Trains `model` on this rank's batches. `averages_by_itself`: FSDP averages its gradients. `accelerated`: conclave.AdamW clips and updates."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    optimizer = optimizer_of(conclave.parameter_groups(model), conclave.AdamW if accelerated else torch.optim.AdamW)
    for group in optimizer.param_groups:  # the oracle decays all
        group["weight_decay"] = 0.1
    for step, tokens in enumerate(batches(len(right.losses), ranks, seed=SEED)):
        loss = model(input_ids=tokens[rank], labels=tokens[rank]).loss
        loss.backward()
        if not averages_by_itself:
            conclave.synchronize_gradients(model)
        for name, parameter in model.named_parameters() if step == 0 else ():
            error = error_of(whole(parameter.grad), right.gradients[name])
            assert error < TOLERANCE, f"{what}: gradient of {name} differs by {error:.1e}"
        norm = conclave.clip_grad_norm_(model, 1.0, optimizer=optimizer if accelerated else None).item()
        assert norm == pytest.approx(right.norms[step], rel=TOLERANCE), f"{what}: norm of the gradient in step {step}"
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        assert mean.item() / ranks == pytest.approx(right.losses[step], rel=TOLERANCE), f"{what}: loss of step {step}"

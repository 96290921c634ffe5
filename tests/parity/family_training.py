"""A tiny model of a family trained twice: by the program, and by a plain loop of Transformers on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from sample_order import SampleOrder
from small_job import SmallJob, write_tokens
from tiny_families import balancing_loss, has_experts, lm_loss
from transformers import PreTrainedModel

STEPS, SEED, SEQUENCE, ROWS, RATE, DECAY = 10, 5, 16, 4, 1e-3, 0.1
# Relative, of each step's loss and gradient norm; see test_training.py.
STEP_TOLERANCE = 1e-4


def tokens_of(vocabulary: int) -> torch.Tensor:
    """Each token follows from the one before but for one in four, so that there is something to learn."""
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(0, vocabulary, (29 * SEQUENCE + 5,), generator=generator)
    for i in range(1, len(tokens)):
        if torch.rand((), generator=generator) < 0.75:
            tokens[i] = (3 * tokens[i - 1] + 1) % vocabulary
    return tokens


def batches_of(tokens: torch.Tensor, steps: int = STEPS) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Of each step the numbers of its samples, and their tokens [ROWS,SEQUENCE+1]."""
    order = SampleOrder((len(tokens) - 1) // SEQUENCE, SEED)
    for step in range(steps):
        samples = [order[step * ROWS + row] for row in range(ROWS)]
        yield samples, torch.stack([tokens[sample * SEQUENCE :][: SEQUENCE + 1] for sample in samples])


def optimizer_of(model: PreTrainedModel) -> torch.optim.AdamW:
    """As the jobs of these tests have it; experts' biases are matrices, and no weight decays that is a norm or a bias."""
    decays = {name: parameter.dim() > 1 and not name.endswith("_bias") for name, parameter in model.named_parameters()}
    decaying = [parameter for name, parameter in model.named_parameters() if decays[name]]
    others = [parameter for name, parameter in model.named_parameters() if not decays[name]]
    return torch.optim.AdamW([{"params": decaying, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}], lr=RATE, betas=(0.9, 0.95), eps=1e-8)


def train_with_transformers(model: PreTrainedModel, tokens: torch.Tensor, steps: int = STEPS, *, before: Callable[[list[int]], None] = lambda samples: None,
                            added_loss: Callable[[object], torch.Tensor] | None = None,
                            after: Callable[[], None] = lambda: None) -> list[tuple[float, float]]:
    """Trains `model` in place; the loss and the gradient norm of each step.

    `added_loss`: of the model's output, instead of the family's own balancing loss. `before` and `after` are called around each step.
    """
    optimizer, seen = optimizer_of(model), []
    for samples, batch in batches_of(tokens, steps):
        before(samples)
        optimizer.zero_grad()
        out = model(input_ids=batch[:, :-1])
        loss = lm_loss(out.logits, batch[:, 1:]) + (balancing_loss(model, out) if added_loss is None else added_loss(out))
        loss.backward()
        seen.append((loss.item(), torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()))
        optimizer.step()
        after()
    return seen


def make_job(folder: Path, initial: Path, family: str, tokens: torch.Tensor, ranks: int = 2, **keys: object) -> SmallJob:
    """A job in `folder` that starts from the model in `initial` and does with `tokens` what the loop above does; each step is one micro-step."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text((initial / "config.json").read_text())
    write_tokens(folder / "tokens", [tokens.numpy()])
    return SmallJob(folder, {
        "run.steps": STEPS, "run.seed": SEED, "model.init_from": str(initial), "data.sequence_length": SEQUENCE, "data.micro_batch_size": ROWS // ranks,
        "data.global_batch_size": ROWS, "optimizer.lr": RATE, "optimizer.weight_decay": DECAY, "optimizer.grad_clip": 1.0, "checkpoint.every": STEPS,
        "parallel.expert_parallel_degree": min(ranks, 2) if has_experts(family) else 1, **keys})

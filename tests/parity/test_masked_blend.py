"""Training on a blend of two sources, one of which has a mask, against a plain Transformers loop.

Oracle: MixtralForCausalLM in fp32 in one process with labels of -100 where the mask says so, torch.optim.AdamW, and the order by its
definition: a greedy choice among the sources that stay within their share, and sample_order.py within each. The loss of a step is the mean over
all targets that count, over all ranks and micro-steps.
"""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mixtral import BASE, IGNORED, Case, make_model, save_model
from ranks import run_ranks, succeed
from sample_order import SampleOrder
from small_job import write_tokens

SEED, STEPS, BATCH, SEQUENCE = 5, 12, 4, 16
WEIGHTS = {"plain": Fraction(3, 10), "chat": Fraction(7, 10)}
SAMPLES = {"plain": 9, "chat": 23}  # an epoch of each; the run reads more of both
LEARNING_RATE = 3e-3
# Relative, as in test_training.py: AdamW divides by the gradient's size, so steps add up; seen: 2e-5, of gradient norms.
TOLERANCE = 1e-4
CASE = Case("masked blend", {"initializer_range": 0.1}, seed=SEED)
LAYOUTS = {"one rank": (1, 4), "one rank, micro-steps": (1, 1), "two ranks": (2, 1), "four ranks": (4, 1)}  # ranks, micro_batch_size


def blend_order(samples: int) -> list[tuple[str, int]]:
    """(source, which sample of it) at each position."""
    counts = dict.fromkeys(WEIGHTS, 0)
    places = []
    for n in range(samples):
        due = [name for name in WEIGHTS if counts[name] < (n + 1) * WEIGHTS[name]]
        name = min(due, key=lambda name: Fraction(counts[name] + 1) / WEIGHTS[name])
        places.append((name, counts[name]))
        counts[name] += 1
        assert all(abs(counts[name] - (n + 1) * WEIGHTS[name]) < 1 for name in WEIGHTS)
    return places


class Oracle:
    """Losses and norms of each step."""

    def __init__(self, tokens: dict[str, np.ndarray], masks: dict[str, np.ndarray]) -> None:
        model = make_model(CASE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
        orders = {name: SampleOrder(SAMPLES[name], SEED) for name in WEIGHTS}
        places = blend_order(STEPS * BATCH)
        self.records: list[dict[str, float]] = []
        for step in range(STEPS):
            optimizer.zero_grad()
            sums, targets = dict.fromkeys(WEIGHTS, 0.0), dict.fromkeys(WEIGHTS, 0)
            total = torch.zeros(())
            for name, number in places[step * BATCH : (step + 1) * BATCH]:
                begin = orders[name][number] * SEQUENCE
                sample = torch.from_numpy(tokens[name][begin : begin + SEQUENCE + 1].astype(np.int64))
                labels = sample[1:].clone()
                labels[torch.from_numpy(masks[name][begin + 1 : begin + SEQUENCE + 1] == 0)] = IGNORED
                logits = model(input_ids=sample[None, :-1]).logits[0]
                loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
                total = total + loss
                sums[name] += loss.item()
                targets[name] += int((labels != IGNORED).sum())
            count = sum(targets.values())
            (total / count).backward()
            record = {"lm_loss": total.item() / count, "targets": count}
            record["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf).item()
            for name in WEIGHTS:
                read = sum(place[0] == name for place in places[: (step + 1) * BATCH])
                record |= {f"source/{name}/targets": targets[name], f"source/{name}/tokens": read * SEQUENCE}
                record[f"source/{name}/loss"] = sums[name] / targets[name] if targets[name] else None
            self.records.append(record)
            optimizer.step()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blend")
    save_model(make_model(CASE), folder / "initial", "v4")
    return folder


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    generator = np.random.default_rng(SEED)
    tokens = {name: generator.integers(0, BASE["vocab_size"], SAMPLES[name] * SEQUENCE + 3) for name in WEIGHTS}
    masks = {"plain": np.ones(len(tokens["plain"]), np.uint8), "chat": (generator.random(len(tokens["chat"])) < 0.4).astype(np.uint8)}
    masks["chat"][5 * SEQUENCE : 9 * SEQUENCE + 1] = 0  # samples without a target
    write_tokens(folder / "plain", [tokens["plain"]])
    write_tokens(folder / "chat", [tokens["chat"]], mask=masks["chat"])
    return Oracle(tokens, masks)


def job_of(folder: Path, name: str, micro_batch: int, **data: object) -> Path:
    blend = [{"path": str(folder / source), "weight": float(weight)} for source, weight in WEIGHTS.items()]
    job = {
        "run": {"output_dir": str(folder / name), "steps": STEPS, "seed": SEED, "device": "cpu"},
        "model": {"config": str(folder / "initial"), "init_from": str(folder / "initial")},
        "data": {"train": blend, "sequence_length": SEQUENCE, "micro_batch_size": micro_batch, "global_batch_size": BATCH, **data},
        "moe": {"moe_load_balancing": "none"},
        "precision": {"compute": "fp32"},
        "optimizer": {"lr": LEARNING_RATE, "weight_decay": 0.0, "grad_clip": 0},
        "schedule": {"kind": "constant"},
        "checkpoint": {"every_minutes": 0},
    }
    file = folder / f"{name.replace(' ', '-')}.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_targets_and_gradients_at_every_step(layout: str, folder: Path, oracle: Oracle) -> None:
    ranks, micro_batch = LAYOUTS[layout]
    ended = succeed(run_ranks(ranks, ["train", job_of(folder, layout, micro_batch)], timeout=240))
    seen = [json.loads(line) for line in (folder / layout / "metrics.jsonl").read_text().splitlines()]
    assert len(seen) == STEPS and all(record["skipped"] == 0 for record in seen)
    for step, (mine, theirs) in enumerate(zip(seen, oracle.records, strict=True), 1):
        for key, value in theirs.items():
            expected = value if value is None or isinstance(value, int) else pytest.approx(value, rel=TOLERANCE)
            assert mine[key] == expected, f"{key} of step {step}, seed {SEED}"
    assert "(plain " in ended.text and ", chat " in ended.text  # the progress line
    assert "data.train chat" in ended.text and "70 % of the samples" in ended.text and "trained on" in ended.text


def test_a_step_without_a_target_changes_no_weight(folder: Path, oracle: Oracle) -> None:
    """A set of one target: of its four samples three have none. Without decay and balancing a step of these has no gradient."""
    tokens = np.arange(4 * SEQUENCE + 1) % BASE["vocab_size"]
    mask = np.zeros(len(tokens), np.uint8)
    mask[2 * SEQUENCE + 3] = 1
    write_tokens(folder / "one-target", [tokens], mask=mask)
    for ranks in (1, 2):
        name = f"one target {ranks}"
        job = job_of(folder, name, 1, train=str(folder / "one-target"), global_batch_size=2, validation=str(folder / "one-target"))
        succeed(run_ranks(ranks, ["train", job, "--set", "validation.every=1"], timeout=240))
        seen = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert sorted({record["targets"] for record in seen}) == [0, 1]
        before = None
        for record in seen:
            assert record["skipped"] == 0
            if record["targets"] == 0:
                assert record["lm_loss"] is None and record["grad_norm"] == 0
            else:
                assert record["grad_norm"] > 0
                assert before is None or record["lm_loss"] == pytest.approx(before, rel=TOLERANCE)
            before = record["validation_loss"]  # of the one target: what the next loss is of

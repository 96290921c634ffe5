"""Every family in bf16: `conclave trace` with precision.compute: bf16 against Transformers' own class in bf16.

Oracle: Transformers in fp32 on weights that are bf16 numbers, and Transformers in bf16 on the same. Both programs round what they compute to 8 bits, at
other places. Tolerance: Conclave's error against fp32 is at most twice that of Transformers in bf16, as RMS over the logits, and over all gradients together:
two sums of thousands of roundings of one size. Rounding also moves some tokens' choices of experts, in both programs alike.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from processor import has_bf16
from ranks import run_ranks, succeed
from safetensors.torch import load_file, save_file
from tiny_families import CASES, Case, Reference, compute_reference, has_experts, make_batch, make_model

pytestmark = pytest.mark.skipif(not has_bf16(), reason="this processor has no fast bf16, and the program refuses it")

FAST = ("qwen2_moe", "deepseek_v3")
BASE = [case for case in CASES if case.name == "base"]


def rounded(case: Case) -> torch.nn.Module:
    """A model of fp32 whose parameters are bf16 numbers; selection biases stay, as Transformers keeps them."""
    model = make_model(case)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    return model


def in_bf16(model: torch.nn.Module) -> torch.nn.Module:
    """As from_pretrained makes it: parameters alone; rotary frequencies and selection biases stay in fp32."""
    half = copy.deepcopy(model)
    for parameter in half.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return half


def error(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """RMS over all numbers, relative."""
    wrong = sum((found[name].double() - right[name].double()).square().sum().item() for name in right)
    return (wrong / sum(tensor.double().square().sum().item() for tensor in right.values())) ** 0.5


def logits_of(reference: Reference) -> dict[str, torch.Tensor]:
    return {"logits": reference.values["logits"].float()}


def trace(folder: Path, expert_degree: int) -> dict[str, torch.Tensor]:
    out = folder / "trace.safetensors"
    succeed(run_ranks(2, ["trace", "--model", folder, "--tokens", folder / "tokens/tokens.safetensors", "--out", out, "--grads", "--set=precision.compute=bf16",
                          f"--set=parallel.expert_parallel_degree={expert_degree}"]))
    return load_file(out)


@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case.family in FAST else pytest.mark.slow) for case in BASE], ids=str)
def test_bf16_is_as_near_to_fp32_as_transformers_is(case, tmp_path):
    model = rounded(case)
    model.save_pretrained(tmp_path)
    inputs, targets = make_batch(case, model)
    (tmp_path / "tokens").mkdir()
    save_file({"input_ids": inputs, "labels": targets}, tmp_path / "tokens/tokens.safetensors")
    right = compute_reference(case, model, inputs, targets, tmp_path / "fp32")
    theirs = compute_reference(case, in_bf16(model), inputs, targets, tmp_path / "bf16", closest=-1.0)  # choices may be equal there
    mine = trace(tmp_path, 2 if has_experts(case.family) else 1)
    gradients = {name.removeprefix("grad."): tensor for name, tensor in mine.items() if name.startswith("grad.")}
    assert gradients.keys() == right.gradients.keys()
    errors = {"logits": (error(mine, logits_of(right)), error(logits_of(theirs), logits_of(right))),
              "gradients": (error(gradients, right.gradients), error(theirs.gradients, right.gradients))}
    for what, (own, other) in errors.items():
        assert 1e-3 < other, f"{case}: Transformers computed {what} in bf16, but their error is {other:.2g}"
        assert own <= 2 * other, f"{case}: {what} are off by {own:.3g}, those of Transformers by {other:.3g}"
    # The loss is a mean over tokens: its error is far below that of a logit, in both.
    assert mine["lm_loss"].item() == pytest.approx(right.values["lm_loss"].item(), rel=1e-2)

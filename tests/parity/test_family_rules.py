"""Balancing rules, capacity and ways of travel with the families' own mixtures: shared experts, gated or not, sigmoid scores, groups, biases.

Oracle: a plain loop of Transformers with the rules in plain PyTorch (plain_routing.py). Tolerance: that of test_training.py. Five steps: after ten, Adam has
magnified what rounding does to weights whose gradient is near zero beyond it under rules that give tokens to experts which the router did not choose.
"""

from __future__ import annotations

import pytest
import torch
from family_training import SEQUENCE, STEP_TOLERANCE, make_job, tokens_of, train_with_transformers
from plain_routing import PlainRouting
from tiny_families import CASES, make_model, on_disk

STEPS = 5

BASE = {case.family: case for case in CASES if case.name == "base"}
SIGMOID = ("deepseek_v3", "glm4_moe")
GROUPED = (*SIGMOID, "deepseek_v2")  # sinkhorn is refused
FAMILIES = ("qwen2_moe", "deepseek_v2", "deepseek_v3", "glm4_moe", "gpt_oss")
RULES = {
    "bias": {"moe_load_balancing": "bias", "bias_update_rate": 0.05},
    "balanced": {"moe_load_balancing": "balanced"},
    "sinkhorn": {"moe_load_balancing": "sinkhorn"},
    "a loss of each layer": {"moe_load_balancing": "aux_loss", "moe_aux_loss_coeff": 0.5, "aux_loss_layers": "each"},
    "a loss of each layer, z-loss": {"moe_load_balancing": "aux_loss", "moe_aux_loss_coeff": 0.5, "aux_loss_layers": "each", "moe_z_loss_coeff": 0.1},
    "capacity by score": {"capacity_factor": 0.75, "drop_policy": "probability"},
    "capacity by position": {"capacity_factor": 0.75, "drop_policy": "position"},
    "capacity, bias": {"moe_load_balancing": "bias", "bias_update_rate": 0.05, "capacity_factor": 1.0, "drop_policy": "probability"},
    # Ways of travel change nothing.
    "experts stay at home": {"overload": "none"},
    "spill": {"overload": "spill", "spill_threshold": 1.0, "spill_least_rows": 1},
    "parts": {"overload": "chunk", "max_tokens_per_rank_factor": 1.0},
    "shuffle": {"global_token_shuffle": True},
    "shuffle, all-gather": {"global_token_shuffle": True, "dispatcher": "all_gather"},
    "three chunks": {"dispatch_chunks": 3},
}
FAST = {("deepseek_v3", "capacity, bias"), ("qwen2_moe", "sinkhorn"), ("gpt_oss", "spill"), ("glm4_moe", "a loss of each layer")}


def refused(family: str, rule: str) -> bool:
    return rule == "sinkhorn" and family in GROUPED or "z-loss" in rule and family in SIGMOID


PAIRS = [pytest.param(family, rule, marks=() if (family, rule) in FAST else pytest.mark.slow) for family in FAMILIES for rule in RULES]


@pytest.mark.parametrize("family, rule", PAIRS)
def test_a_rule_equals_the_plain_one(family, rule, tmp_path):
    keys = {"moe_load_balancing": "none", **RULES[rule]}
    model = make_model(BASE[family])
    model.save_pretrained(tmp_path / "initial")
    tokens = tokens_of(model.config.vocab_size)
    job = make_job(tmp_path / "job", tmp_path / "initial", family, tokens,
                   **{"run.steps": STEPS, "checkpoint.every": STEPS, **{f"moe.{key}": value for key, value in keys.items()}})
    if refused(family, rule):
        ended = job.run(2)
        assert ended.codes == [2, 2] and "moe." in ended.text, ended.text
        return
    job.must_run(2)
    routing, position = PlainRouting(model, keys), 0

    def begin(samples: list[int]) -> None:
        nonlocal position
        routing.begin(torch.arange(position, position + len(samples) * SEQUENCE))
        position += len(samples) * SEQUENCE

    steps = train_with_transformers(model, tokens, STEPS, before=begin, added_loss=routing.loss, after=routing.finish_step)
    seen = [(record["loss"], record["grad_norm"]) for record in job.metrics()]
    assert len(seen) == STEPS
    for step, (mine, theirs) in enumerate(zip(seen, steps, strict=True)):
        assert mine == pytest.approx(theirs, rel=STEP_TOLERANCE, abs=0), f"{family}, {rule}: step {step + 1} of {seen} and {steps}"
    if "capacity_factor" in keys:
        assert routing.dropped > 0
        assert sum(record["drop_rate"] for record in job.metrics()) / STEPS == pytest.approx(routing.dropped / routing.chosen, rel=1e-9)
    if keys["moe_load_balancing"] == "bias" and routing.has_bias:
        exported = on_disk(job.must_export(tmp_path / "exported"))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                assert torch.equal(exported[name], buffer), name

"""Frozen parameters (train.freeze) against Transformers with requires_grad off.

Oracle: the family's class of Transformers in fp32, the frozen parameters without gradient, torch.optim.AdamW over the others, clip_grad_norm_ over the
others. Tolerances as in test_families.py: 1e-4 of each step's loss and gradient norm.
"""

from __future__ import annotations

import fnmatch

import pytest
import torch
from ranks import run_ranks, succeed
from safetensors.torch import load_file, save_file
from small_job import SmallJob, write_tokens
from test_families import DECAY, RATE, ROWS, SEED, SEQUENCE, STEP_TOLERANCE, STEPS, TOLERANCE, numbers, tokens_of, train_with_transformers
from tiny_families import Case, compute_reference, make_batch, make_model, on_disk

# Patterns over names on disk, and over Transformers' names in memory.
FROZEN = {
    "qwen3_moe": (["model.embed_tokens.weight", "model.layers.0.*", "*.mlp.gate.weight", "*norm*"],) * 2,
    "mixtral": (["*.block_sparse_moe.experts.*.w2.weight", "lm_head.weight"], ["*.mlp.experts.down_proj", "lm_head.weight"]),
    "deepseek_v3": (["model.embed_tokens.weight", "model.layers.0.*", "*.q_a_*", "*.shared_experts.*", "*.experts.*"],
                    ["model.embed_tokens.weight", "model.layers.0.*", "*.q_a_*", "*.shared_experts.*", "*.experts.*"]),
}


def is_frozen(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@pytest.fixture(scope="module", params=FROZEN)
def frozen(request, tmp_path_factory):
    """The family's job on two ranks, ended, its frozen patterns, and the steps of the oracle."""
    patterns, in_memory = FROZEN[request.param]
    folder = tmp_path_factory.mktemp("freeze")
    model = make_model(Case(request.param))
    model.save_pretrained(folder / "initial")
    tokens = tokens_of(model.config.vocab_size)
    (folder / "config.json").write_text((folder / "initial" / "config.json").read_text())
    write_tokens(folder / "tokens", [tokens.numpy()])
    job = SmallJob(folder, {
        "run.steps": STEPS, "run.seed": SEED, "model.init_from": str(folder / "initial"), "data.sequence_length": SEQUENCE, "train.freeze": patterns,
        "data.micro_batch_size": ROWS // 2, "data.global_batch_size": ROWS, "optimizer.lr": RATE, "optimizer.weight_decay": DECAY,
        "optimizer.grad_clip": 1.0, "checkpoint.every": STEPS // 2, "parallel.expert_parallel_degree": 2})
    job.must_run(2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_frozen(name, in_memory))
    return job, patterns, train_with_transformers(model, tokens)


def test_ten_steps_equal_transformers_without_those_gradients(frozen):
    job, _, steps = frozen
    for step, (record, expected) in enumerate(zip(job.metrics(), steps, strict=True)):
        assert (record["loss"], record["grad_norm"]) == pytest.approx(expected, rel=STEP_TOLERANCE, abs=0), f"step {step + 1}"


def test_what_is_frozen_stays_as_it_was_and_all_else_moves(frozen, tmp_path):
    job, patterns, _ = frozen
    before, after = on_disk(job.folder / "initial"), on_disk(job.must_export(tmp_path / "exported"))
    for name, tensor in before.items():
        if not name.endswith("e_score_correction_bias"):
            assert torch.equal(tensor, after[name]) == is_frozen(name, patterns), name


def test_layouts_recomputation_and_resume(frozen, tmp_path):
    """On one rank to rounding, recomputed and offloaded to the bit, resumed at another layout; then with the patterns taken away."""
    job, _, _ = frozen
    alone = job.with_keys({"run.output_dir": str(tmp_path / "alone"), "parallel.expert_parallel_degree": 1, "data.micro_batch_size": ROWS})
    alone.must_run(1)
    middle = str(job.output / "checkpoints" / f"step-{STEPS // 2:08d}")
    resumed = alone.with_keys({"run.output_dir": str(tmp_path / "resumed"), "checkpoint.resume": middle})
    resumed.must_run(1)
    for mine, theirs in ((numbers(alone.metrics()), numbers(job.metrics())), (numbers(resumed.metrics()), numbers(job.metrics())[STEPS // 2 :])):
        for left, right in zip(mine, theirs, strict=True):
            assert left == pytest.approx(right, rel=STEP_TOLERANCE, abs=0)
    recomputed = job.with_keys({"run.output_dir": str(tmp_path / "full"), "memory.activation_checkpointing": "full", "memory.activation_offloading": True,
                                "memory.activation_loading_horizon": 1})
    recomputed.must_run(2)
    assert numbers(recomputed.metrics()) == numbers(job.metrics())
    thawed = resumed.with_keys({"run.output_dir": str(tmp_path / "thawed"), "train.freeze": []})
    ended = thawed.run(1)
    assert set(ended.codes) == {2} and "train.freeze" in ended.text, ended.text
    ended = thawed.with_keys({"checkpoint.allow_changed": "train.freeze"}).must_run(1)
    assert "begins as zeros" in ended.text


def test_gradients_of_what_is_trained(tmp_path):
    """By trace, on two ranks: the gradients of the others are those that Transformers computes, and there are no more."""
    case = Case("qwen3_moe")
    model = make_model(case)
    model.save_pretrained(tmp_path)
    inputs, targets = make_batch(case, model)
    (tmp_path / "tokens").mkdir()
    save_file({"input_ids": inputs, "labels": targets}, tmp_path / "tokens" / "tokens.safetensors")
    expected = compute_reference(case, model, inputs, targets, tmp_path / "gradients").gradients
    out = tmp_path / "tokens" / "trace.safetensors"
    patterns = FROZEN["qwen3_moe"][0]
    succeed(run_ranks(2, ["trace", "--model", tmp_path, "--tokens", tmp_path / "tokens" / "tokens.safetensors", "--out", out, "--grads",
                          "--set=parallel.expert_parallel_degree=2", f"--set=train.freeze={patterns}"]))
    traced = {name.removeprefix("grad."): tensor for name, tensor in load_file(out).items() if name.startswith("grad.")}
    assert traced.keys() == {name for name in expected if not is_frozen(name, patterns)}
    for name, tensor in traced.items():
        assert (tensor - expected[name]).abs().max() <= TOLERANCE * expected[name].abs().max(), name


@pytest.mark.parametrize(("patterns", "message"), [
    (["model.embed_tokens"], "the pattern model.embed_tokens, which matches no parameter of the model"),
    (["*.q_proj.weight"], "matches model.layers.0.self_attn.q_proj.weight, but not model.layers.0.self_attn.k_proj.weight"),
    (["*.experts.3.*"], "but not model.layers.0.block_sparse_moe.experts.0.w1.weight"),
    (["*"], "nothing is left to train"),
])
def test_refusals(patterns, message, tmp_path):
    for command, ranks in (("train", 2), ("validate", 1), ("plan", 1)):
        ended = SmallJob(tmp_path, {"train.freeze": patterns}).run(ranks, command)
        assert set(ended.codes) == {2} and message in ended.text and "Traceback" not in ended.text, ended.text
    assert not (tmp_path / "out").exists()

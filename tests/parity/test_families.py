"""Every family against Transformers: `conclave trace`, training, layouts, recomputation, resume and export.

Oracle: the family's own class of Transformers in fp32 with eager attention, on the whole batch in one process; gradients by autograd of lm_loss and,
where the family has one, its balancing loss. Names of gradients are those under which Transformers saves the model.

Tolerance: the largest difference is at most 1e-5 of the tensor's largest value. Both sides compute in fp32 (unit roundoff 6e-8) and differ in the order
of sums of 16 to 100 terms through 1 to 3 layers. A wrong divisor, mask, token or expert changes a tensor by far more than 1e-3.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from family_training import ROWS, SEQUENCE, STEP_TOLERANCE, STEPS, make_job, tokens_of, train_with_transformers
from grid import Grid
from ranks import run_ranks, succeed
from safetensors.torch import load_file, save_file
from small_job import SmallJob
from tiny_families import CASES, Case, Reference, compute_reference, has_experts, lm_loss, make_batch, make_model, on_disk
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-5


GRIDS = [Grid(1), Grid(2, expert=2), Grid(4, expert=2), Grid(4, expert=2, shard=1)]
DENSE_GRIDS = [Grid(1), Grid(2), Grid(4, shard=2), Grid(4, shard=1)]


def grids_of(family: str) -> list[Grid]:
    return GRIDS if has_experts(family) else DENSE_GRIDS


@dataclass
class Prepared:
    folder: Path
    reference: Reference


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    """The checkpoint, tokens and reference of a case, made once."""
    made: dict[str, Prepared] = {}

    def prepare(case: Case) -> Prepared:
        if str(case) not in made:
            folder = tmp_path_factory.mktemp("case")
            model = make_model(case)
            model.save_pretrained(folder)
            inputs, targets = make_batch(case, model)
            (folder / "tokens").mkdir()
            save_file({"input_ids": inputs, "labels": targets}, folder / "tokens" / "tokens.safetensors")
            made[str(case)] = Prepared(folder, compute_reference(case, model, inputs, targets, folder / "gradients"))
        return made[str(case)]

    return prepare


def run_trace(folder: Path, grid: Grid) -> dict[str, torch.Tensor]:
    out = folder / "tokens" / f"trace-{grid.world}-{grid.expert}-{grid.shard}.safetensors"
    layout = [f"--set=parallel.expert_parallel_degree={grid.expert}", f"--set=parallel.hybrid_shard_degree={grid.shard}"]
    tokens = folder / "tokens" / "tokens.safetensors"
    succeed(run_ranks(grid.world, ["trace", "--model", folder, "--tokens", tokens, "--out", out, "--grads", *layout]))
    return load_file(out)


def mistakes(traced: dict[str, torch.Tensor], reference: Reference) -> list[str]:
    """The tensors that differ by more than the tolerance, in words."""
    found = []
    expected = reference.values | {f"grad.{name}": gradient for name, gradient in reference.gradients.items()}
    for name, tensor in expected.items():
        if name not in traced:
            found.append(f"{name} is missing")
            continue
        if traced[name].shape != tensor.shape:
            found.append(f"{name}: shape {list(traced[name].shape)}, expected {list(tensor.shape)}")
            continue
        difference = (traced[name] - tensor).abs().max().item()
        scale = tensor.abs().max().item()
        if not difference <= TOLERANCE * scale:  # also true for NaN; a tensor of zeros must be zeros
            found.append(f"{name}: differs by {difference:.3g}, largest value {scale:.3g}")
    found += [f"{name} is no gradient of Transformers" for name in traced if name.startswith("grad.") and name not in expected]
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_losses_and_gradients_equal_those_of_transformers(case, prepared):
    ready = prepared(case)
    for grid in grids_of(case.family):
        found = mistakes(run_trace(ready.folder, grid), ready.reference)
        assert not found, f"{case} on {grid}:\n" + "\n".join(found)


# ---- training

BASE = {case.family: case for case in CASES if case.name == "base"}
# The others are trained by ./dev test --all.
FAST = ("qwen2_moe", "deepseek_v3", "gpt_oss", "llama")


@dataclass
class Trained:
    job: SmallJob  # of two ranks; others are variants of it
    metrics: list[dict]
    model: torch.nn.Module  # after the oracle's training
    steps: list[tuple[float, float]]


@pytest.fixture(scope="module", params=[family if family in FAST else pytest.param(family, marks=pytest.mark.slow) for family in BASE])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    case = BASE[request.param]
    folder = tmp_path_factory.mktemp("training")
    model = make_model(case)
    model.save_pretrained(folder / "initial")
    tokens = tokens_of(model.config.vocab_size)
    job = make_job(folder / "job", folder / "initial", case.family, tokens, **{"checkpoint.every": STEPS // 2})
    job.must_run(2)
    return Trained(job, job.metrics(), model, train_with_transformers(model, tokens))


def numbers(records: list[dict]) -> list[list[float]]:
    return [[record[name] for name in ("step", "loss", "grad_norm")] for record in records]


def variant(trained: Trained, folder: Path, keys: dict[str, object]) -> SmallJob:
    return trained.job.with_keys({"run.output_dir": str(folder / "out"), **keys})


def test_ten_steps_equal_a_plain_loop_of_transformers(trained):
    seen = [(record["loss"], record["grad_norm"]) for record in trained.metrics]
    assert len(seen) == STEPS
    for step, (mine, theirs) in enumerate(zip(seen, trained.steps, strict=True)):
        assert mine == pytest.approx(theirs, rel=STEP_TOLERANCE, abs=0), f"step {step + 1}"


def test_an_export_is_what_transformers_would_save(trained, tmp_path):
    exported = trained.job.must_export(tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(exported, attn_implementation="eager", dtype=torch.float32).eval()
    tokens = tokens_of(model.config.vocab_size)[:SEQUENCE].unsqueeze(0)
    with torch.no_grad():
        logits, expected = model(tokens).logits, trained.model(tokens).logits
    # Absolute, of logits after ten updates of up to 1e-3 a weight: see test_training.py on weights whose gradient is near zero.
    assert (logits - expected).abs().max().item() < 2e-2 * expected.abs().max().item()
    trained.model.save_pretrained(tmp_path / "theirs")
    assert {name: tensor.shape for name, tensor in on_disk(exported).items()} == {
        name: tensor.shape for name, tensor in on_disk(tmp_path / "theirs").items()}
    # And it is the model that the program itself computes: the same logits to rounding.
    batch = tmp_path / "tokens.safetensors"
    save_file({"input_ids": tokens, "labels": tokens.clone()}, batch)
    succeed(run_ranks(1, ["trace", "--model", exported, "--tokens", batch, "--out", tmp_path / "trace.safetensors"]))
    traced = load_file(tmp_path / "trace.safetensors")["logits"]
    assert (traced - logits).abs().max().item() <= TOLERANCE * logits.abs().max().item()


def test_an_untrained_export_writes_the_same_text(trained, tmp_path):
    """Oracle: the source model in Transformers, and its own generate."""
    job = variant(trained, tmp_path, {"run.steps": 1, "checkpoint.every": 1, "optimizer.lr": 1e-30, "optimizer.weight_decay": 0.0})  # no weight moves
    job.must_run(2)
    source, exported = (AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
                        for folder in (trained.job.folder.parent / "initial", job.must_export(tmp_path / "exported")))
    prompt = tokens_of(source.config.vocab_size)[: 2 * SEQUENCE].view(2, SEQUENCE)
    with torch.no_grad():
        assert torch.equal(source(prompt).logits, exported(prompt).logits)
    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "output_router_logits": False}
    assert torch.equal(source.generate(prompt, **greedy), exported.generate(prompt, **greedy))


@pytest.mark.parametrize("ranks, keys", [(1, {"parallel.expert_parallel_degree": 1, "data.micro_batch_size": ROWS}),
                                         (4, {"parallel.hybrid_shard_degree": 1, "data.micro_batch_size": 1})], ids=["1 rank", "4 ranks, replicas"])
def test_another_layout_gives_the_same_curve(trained, ranks, keys, tmp_path):
    """And it resumes from a checkpoint of the first one."""
    job = variant(trained, tmp_path, {**keys, "checkpoint.resume": str(trained.job.output / "checkpoints" / f"step-{STEPS // 2:08d}")})
    job.must_run(ranks)
    for mine, theirs in zip(numbers(job.metrics()), numbers(trained.metrics)[STEPS // 2 :], strict=True):
        assert mine == pytest.approx(theirs, rel=STEP_TOLERANCE, abs=0)


@pytest.mark.parametrize("keys", [{"memory.activation_checkpointing": "selective"}, {"memory.activation_checkpointing": "full"},
                                  {"memory.activation_checkpointing": "full", "memory.activation_offloading": True},
                                  {"parallel.reshard_after_forward": False}], ids=str)
def test_recomputation_changes_no_bit(trained, keys, tmp_path):
    job = variant(trained, tmp_path, keys)
    job.must_run(2)
    assert numbers(job.metrics()) == numbers(trained.metrics)


@pytest.mark.parametrize("ranks, keys", [(1, {"parallel.expert_parallel_degree": 1, "data.micro_batch_size": ROWS}), (2, {})], ids=["1 rank", "2 ranks"])
def test_the_bias_rule_moves_the_models_own_bias(trained, ranks, keys, tmp_path):
    """By its rate in each step, up or down, and an export carries it; a resumed run goes on with it."""
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    initial = on_disk(trained.job.folder.parent / "initial")
    if name not in initial:
        pytest.skip("a family without a selection bias")
    rate = 0.01
    rule = {"moe.moe_load_balancing": "bias", "moe.bias_update_rate": rate, **keys}
    job = variant(trained, tmp_path, rule)
    job.must_run(ranks)
    moved = on_disk(job.must_export(tmp_path / "exported"))[name]
    steps = (moved - initial[name]) / rate
    assert torch.allclose(steps, steps.round(), atol=1e-3) and 0 < steps.round().abs().max() <= STEPS
    assert not torch.equal(on_disk(trained.job.must_export(tmp_path / "fixed"))[name], moved)
    checkpoint = str(job.output / "checkpoints" / f"step-{STEPS // 2:08d}")
    resumed = variant(trained, tmp_path / "resumed", {**rule, "checkpoint.resume": checkpoint})
    resumed.must_run(ranks)
    assert numbers(resumed.metrics()) == numbers(job.metrics())[STEPS // 2 :]
    assert torch.equal(on_disk(resumed.must_export(tmp_path / "resumed-export"))[name], moved)


def object_in(ended) -> dict:
    """What a command printed with --json."""
    return json.loads(ended.text[ended.text.index("{") : ended.text.rindex("}") + 1])


def test_the_plan_counts_the_parameters(trained):
    planned = object_in(trained.job.must_run(1, "plan", ["--world", 2, "--device", "cpu", "--json"]))
    assert planned["parameters"] == sum(parameter.numel() for parameter in trained.model.parameters())


def test_evaluation_equals_transformers(trained, tmp_path):
    job = trained.job.with_keys({"data.validation": trained.job.keys["data.train"]})
    result = object_in(job.must_run(2, "eval", ["--json"]))
    tokens = tokens_of(trained.model.config.vocab_size)
    samples = [tokens[begin : begin + SEQUENCE + 1] for begin in range(0, (len(tokens) - 1) // SEQUENCE * SEQUENCE, SEQUENCE)]
    batch = torch.stack(samples)
    with torch.no_grad():
        expected = lm_loss(trained.model(input_ids=batch[:, :-1]).logits, batch[:, 1:]).item()
    assert result["validation_loss"] == pytest.approx(expected, rel=1e-3)  # weights differ as after test_an_export

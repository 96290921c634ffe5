"""Documents that do not see each other: every family against Transformers, and against each document alone.

Oracles: the family's own class of Transformers in fp32 with eager attention, once over whole sequences with `position_ids` that begin anew with each
document and a block-diagonal mask, and once over each document by itself, without either. Balancing losses span all tokens, so only the first has them.

Tolerance: that of test_families.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from grid import Grid
from ranks import run_ranks, succeed
from safetensors.torch import load_file, save_file
from small_job import SmallJob, write_tokens
from tiny_families import CASES, FAMILIES, IGNORED, Case, balancing_loss, check_choices, lm_loss, make_batch, make_model, save_gradients

TOLERANCE = 1e-5
LENGTHS = [5, 1, 9, 3, 4, 20, 2]  # of documents, again and again; a sequence's end cuts them
BASE = [case for case in CASES if case.name == "base" or "window" in case.name]


def segments_of(batch: int, sequence: int) -> torch.Tensor:
    """Numbers of documents, int64 [B,S]; those of a sequence are its own."""
    of_token = [number for number, length in enumerate(LENGTHS * (batch * sequence)) for _ in range(length)]
    return torch.tensor(of_token[: batch * sequence]).view(batch, sequence)


def positions_of(segments: torch.Tensor) -> torch.Tensor:
    positions = torch.zeros_like(segments)
    for s in range(1, segments.shape[1]):
        same = segments[:, s] == segments[:, s - 1]
        positions[:, s] = torch.where(same, positions[:, s - 1] + 1, 0)
    return positions


def masks_of(segments: torch.Tensor, config) -> dict[str, torch.Tensor] | torch.Tensor:
    """Of a token's own document what is not behind it, 0 and the least there is; and within the window, of layers that have one."""
    sequence = segments.shape[1]
    distance = torch.arange(sequence)[:, None] - torch.arange(sequence)[None, :]
    visible = (segments[:, :, None] == segments[:, None, :]) & (distance >= 0)

    def mask(visible):
        return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[:, None]

    window = getattr(config, "sliding_window", None)
    sliding = mask(visible & (distance < (window or sequence)))
    types = set(getattr(config, "layer_types", None) or [])
    if types:
        return {"full_attention": mask(visible), "sliding_attention": sliding}
    return sliding if window and getattr(config, "use_sliding_window", True) else mask(visible)


def forward(model, inputs: torch.Tensor, segments: torch.Tensor) -> SimpleNamespace:
    """What the model computes of packed documents. Its own balancing loss knows no masks of pairs of tokens, so it is asked for that of all tokens."""
    routed = {"output_router_logits": True} if getattr(model.config, "output_router_logits", False) else {}
    out = model.model(input_ids=inputs, position_ids=positions_of(segments), attention_mask=masks_of(segments, model.config), **routed)
    logits = model.lm_head(out.last_hidden_state)
    if not routed:
        return SimpleNamespace(logits=logits)
    loss_of = sys.modules[type(model).__module__].load_balancing_loss_func
    return SimpleNamespace(logits=logits, router_logits=out.router_logits, aux_loss=loss_of(out.router_logits, model.num_experts, model.num_experts_per_tok))


def trace(folder: Path, grid: Grid) -> dict[str, torch.Tensor]:
    out = folder / f"trace-{grid.world}.safetensors"
    layout = [f"--set=parallel.expert_parallel_degree={grid.expert}"]
    succeed(run_ranks(grid.world, ["trace", "--model", folder / "model", "--tokens", folder / "tokens.safetensors", "--out", out, "--grads", *layout]))
    return load_file(out)


def compare(traced: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        difference, scale = (traced[name] - tensor).abs().max().item(), tensor.abs().max().item()
        assert difference <= TOLERANCE * scale, f"{name} differs by {difference:.3g}, largest value {scale:.3g}"


def prepare(case: Case, folder: Path):
    model = make_model(case)
    model.save_pretrained(folder / "model")
    inputs, targets = make_batch(case, model)
    segments = segments_of(*inputs.shape)
    ends = torch.cat([segments[:, 1:] != segments[:, :-1], torch.zeros(len(segments), 1, dtype=torch.bool)], 1)
    targets[ends] = IGNORED  # no document predicts the next one
    save_file({"input_ids": inputs, "labels": targets, "segment_ids": segments}, folder / "tokens.safetensors")
    return model, inputs, targets, segments


def grids_of(case: Case) -> list[Grid]:
    return [Grid(1), Grid(2, expert=2 if "num_experts_per_tok" in FAMILIES[case.family] else 1)]


@pytest.mark.parametrize("case", BASE, ids=str)
def test_a_trace_equals_transformers_with_positions_and_a_mask(case, tmp_path):
    model, inputs, targets, segments = prepare(case, tmp_path)
    out = forward(model, inputs, segments)
    check_choices(case, model, out)
    loss = lm_loss(out.logits, targets)
    (loss + balancing_loss(model, out)).backward()
    expected = {"logits": out.logits.detach(), "lm_loss": loss.detach()}
    expected |= {f"grad.{name}": tensor for name, tensor in save_gradients(model, tmp_path / "gradients").items()}
    for grid in grids_of(case):
        traced = trace(tmp_path, grid)
        compare(traced, expected)
        assert not [name for name in traced if name.startswith("grad.") and name not in expected]


@pytest.mark.parametrize("case", [case for case in BASE if case.name == "base"], ids=str)
def test_a_trace_equals_each_document_alone(case, tmp_path):
    """Without the balancing loss, which is of all documents together."""
    model, inputs, targets, segments = prepare(case, tmp_path)
    logits = torch.zeros(*inputs.shape, model.config.vocab_size)
    for sequence, numbers in enumerate(segments):
        for number in numbers.unique():
            of_document = numbers == number
            logits[sequence, of_document] = model(input_ids=inputs[sequence, of_document][None]).logits[0]
    loss = lm_loss(logits, targets)
    loss.backward()
    expected = {"logits": logits.detach(), "lm_loss": loss.detach()}
    expected |= {f"grad.{name}": tensor for name, tensor in save_gradients(model, tmp_path / "gradients").items()}
    if "num_experts_per_tok" in FAMILIES[case.family]:
        out = tmp_path / "trace.safetensors"
        succeed(run_ranks(1, ["trace", "--model", tmp_path / "model", "--tokens", tmp_path / "tokens.safetensors", "--out", out, "--grads",
                              "--set=moe.moe_load_balancing=none"]))
        compare(load_file(out), expected)
    else:
        compare(trace(tmp_path, Grid(1)), expected)


def test_trace_refuses_documents_that_are_none(tmp_path):
    _, inputs, targets, segments = prepare(BASE[0], tmp_path)
    twice = segments.clone()
    twice[1, -1] = twice[1, 0]
    for wrong, said in [(twice, "two places of sequence 1"), (segments[:, :-1].contiguous(), "must have one shape"), (segments.to(torch.int32), "int64 [B,S]")]:
        save_file({"input_ids": inputs, "labels": targets, "segment_ids": wrong}, tmp_path / "tokens.safetensors")
        ended = run_ranks(1, ["trace", "--model", tmp_path / "model", "--tokens", tmp_path / "tokens.safetensors", "--out", tmp_path / "out.safetensors"])
        assert ended.codes == [2] and said in ended.text


def test_an_evaluation_equals_each_document_alone(tmp_path):
    """Documents and their ends come from the token files' index; a document that a sample's end cuts goes on as another one."""
    case, sequence = Case("mixtral"), 16
    model = make_model(case)
    model.save_pretrained(tmp_path / "initial")
    (tmp_path / "config.json").write_text((tmp_path / "initial" / "config.json").read_text())
    generator = torch.Generator().manual_seed(3)
    documents = [torch.randint(0, model.config.vocab_size, (length,), generator=generator) for length in LENGTHS * 6]
    write_tokens(tmp_path / "tokens", [document.numpy() for document in documents])
    numbers = torch.tensor([number for number, document in enumerate(documents) for _ in document])
    tokens = torch.cat(documents)
    losses = []
    for begin in range(0, (len(tokens) - 1) // sequence * sequence, sequence):
        inputs, own = tokens[begin : begin + sequence], numbers[begin : begin + sequence]
        targets, theirs = tokens[begin + 1 : begin + sequence + 1], numbers[begin + 1 : begin + sequence + 1]
        for number in own.unique():
            at = own == number
            with torch.no_grad():
                logits = model(input_ids=inputs[at][None]).logits[0]
            losses += torch.nn.functional.cross_entropy(logits, targets[at], reduction="none")[theirs[at] == number].tolist()
    job = SmallJob(tmp_path, {"data.validation": str(tmp_path / "tokens"), "data.document_mask": True})
    for ranks in (1, 2):
        ended = job.must_run(ranks, "eval", ["--json", "--hugging-face", tmp_path / "initial"])
        result = json.loads(ended.text[ended.text.index("{") : ended.text.rindex("}") + 1])
        assert result["targets"] == len(losses)
        assert result["validation_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)

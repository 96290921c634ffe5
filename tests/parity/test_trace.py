"""`conclave trace` against Transformers: logits, losses and every gradient, for many shapes, disk formats and layouts.

Oracle: MixtralForCausalLM in fp32 with its eager attention and experts, on the whole batch in one process; gradients by
autograd of lm_loss + router_aux_loss_coef * aux_loss.

Tolerance: the largest difference is at most 1e-5 of the tensor's largest value. Both sides compute in fp32 (unit
roundoff 6e-8) and differ in the order of sums of 16 to 100 terms through 1 to 3 layers; seen: up to 2e-6. A wrong
divisor, mask, token or expert changes a tensor by far more than 1e-3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from grid import Grid
from mixtral import Case, Reference, as_transformers_names_it, compute_reference, make_batch, make_model, save_model
from ranks import run_ranks, succeed
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-5


GRIDS = [
    Grid(1),
    Grid(2),
    Grid(2, expert=2),
    Grid(2, shard=1),
    Grid(4, expert=2),  # experts: 2 x 2 shards
    Grid(4, expert=2, shard=1),  # 2 replicas
    Grid(4, expert=4),
    Grid(4, expert=1, shard=2),
]

CASES = [
    Case("base"),
    Case("multi-head attention", {"num_key_value_heads": 4}),
    Case("one key-value head", {"num_key_value_heads": 1}),
    Case("head_dim 24, not 32/4", {"head_dim": 24}),
    Case("head_dim 4, less than 32/4", {"head_dim": 4}),
    Case("tied embeddings", {"tie_word_embeddings": True}),
    Case("window 5 of 16", {"sliding_window": 5}),
    Case("window 40 of 16", {"sliding_window": 40}),
    Case("4 experts, 1 chosen", {"num_local_experts": 4, "num_experts_per_tok": 1}),
    Case("6 experts, 3 chosen", {"num_local_experts": 6, "num_experts_per_tok": 3}),
    Case("4 experts, all chosen", {"num_local_experts": 4, "num_experts_per_tok": 4}),
    Case("one layer", {"num_hidden_layers": 1}),
    Case("three layers", {"num_hidden_layers": 3}),
    Case("32 positions, rope 100", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}, sequence=32),
    Case("some labels ignored", ignored="some"),
    Case("a rank whose labels are all ignored", ignored="first sequence", batch=2),
    Case("3 sequences", batch=3),
    Case("1 sequence: a rank has none", batch=1),
    Case("one token per rank", batch=2, sequence=1),
    Case("config.json of Transformers 4", disk="v4_config"),
    Case("fused experts on disk", disk="v5_fused"),
    Case("many files on disk", disk="sharded"),
    Case("bf16 on disk", disk="bf16"),
    Case("all tokens to expert 6", {"num_experts_per_tok": 1}, favourites=(6,)),
    Case("all tokens to experts 1 and 2", favourites=(1, 2)),
    Case("all tokens to experts 0 and 7", favourites=(0, 7)),
]


@dataclass
class Prepared:
    folder: Path
    reference: Reference


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    """The checkpoint, tokens and reference of a case, made once."""

    made: dict[str, Prepared] = {}

    def prepare(case: Case) -> Prepared:
        if case.name not in made:
            folder = tmp_path_factory.mktemp("case")
            model = make_model(case)
            save_model(model, folder, case.disk)
            inputs, targets = make_batch(case)
            save_file({"input_ids": inputs, "labels": targets}, folder / "tokens.safetensors")
            reference = compute_reference(model, inputs, targets)
            if case.favourites:
                alone = torch.zeros_like(reference.choices)
                alone[:, list(case.favourites)] = inputs.numel()
                elsewhere = (reference.choices - alone).abs().sum().item()
                assert elsewhere == 0, f"{case}: not all tokens go to the favourites"
            made[case.name] = Prepared(folder, reference)
        return made[case.name]

    return prepare


def run_trace(folder: Path, grid: Grid, *more: str) -> dict[str, torch.Tensor]:
    out = folder / f"trace-{grid.world}-{grid.expert}-{grid.shard}.safetensors"
    layout = [
        f"--set=parallel.expert_parallel_degree={grid.expert}",
        f"--set=parallel.hybrid_shard_degree={grid.shard}",
    ]
    tokens = folder / "tokens.safetensors"
    succeed(run_ranks(grid.world, ["trace", "--model", folder, "--tokens", tokens, "--out", out, "--grads", *layout, *more]))
    return load_file(out)


def mistakes(traced: dict[str, torch.Tensor], reference: Reference) -> list[str]:
    """The tensors that differ by more than the tolerance, in words."""
    found = []

    def compare(name: str, mine: torch.Tensor, expected: torch.Tensor) -> None:
        if mine.shape != expected.shape:
            found.append(f"{name}: shape {list(mine.shape)}, expected {list(expected.shape)}")
            return
        difference = (mine - expected).abs().max().item()
        scale = expected.abs().max().item()
        if not difference <= TOLERANCE * scale:  # also true for NaN; a tensor of zeros must be zeros
            found.append(f"{name}: differs by {difference:.3g}, largest value {scale:.3g}")

    for name, expected in reference.values.items():
        compare(name, traced[name], expected.to(torch.float32))
    for name, expected in reference.gradients.items():
        mine = as_transformers_names_it(name, traced, "grad.")
        compare(f"gradient of {name}", mine, expected)
        if ".mlp.experts." in name and mine.shape == expected.shape:
            # An expert without a token has no gradient at all: not a small one.
            for expert in range(len(expected)):
                if expected[expert].count_nonzero() == 0 and mine[expert].count_nonzero() != 0:
                    found.append(f"gradient of {name}: expert {expert} had no token, but has a gradient")
    return found


def check(case: Case, grid: Grid, prepared: Prepared) -> None:
    found = mistakes(run_trace(prepared.folder, grid), prepared.reference)
    assert not found, f"{case} on {grid}:\n" + "\n".join(found)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_on_two_expert_ranks(case: Case, prepared) -> None:
    check(case, Grid(2, expert=2), prepared(case))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_base_on_every_layout(grid: Grid, prepared) -> None:
    check(CASES[0], grid, prepared(CASES[0]))


@pytest.mark.parametrize("grid", [Grid(1), Grid(4, expert=2, shard=1)], ids=str)
@pytest.mark.parametrize("name", ["base", "32 positions, rope 100", "head_dim 24, not 32/4"])
def test_rotary_table_is_that_of_transformers_on_every_layout(name: str, grid: Grid, prepared) -> None:
    """The one buffer of the model, which no checkpoint holds. Transformers' angles are fp32 products of the same two factors, and both take cosines
    in fp32: at most one unit in the last place of a value near 1 (6e-8) lies between them, and at angles up to 63 nothing more."""
    case = next(case for case in CASES if case.name == name)
    model = make_model(case)
    positions = torch.arange(case.sequence)[None]
    cos, sin = model.model.rotary_emb(torch.zeros(1, case.sequence, 1), positions)
    traced = run_trace(prepared(case).folder, grid)
    half = cos.shape[-1] // 2
    torch.testing.assert_close(traced["rotary_cos"], cos[0, :, :half], rtol=0, atol=1.2e-7)
    torch.testing.assert_close(traced["rotary_sin"], sin[0, :, :half], rtol=0, atol=1.2e-7)


@pytest.mark.parametrize("perturbed", ["model.embed_tokens.weight", "model.layers.1.mlp.gate.weight", "lm_head.weight"])
def test_the_comparison_sees_one_wrong_weight(perturbed: str, prepared) -> None:
    """That the tests above can fail: a weight off by a thousandth of its tensor's largest is seen."""
    case = CASES[0]
    model = make_model(case)
    weight = model.get_parameter(perturbed)
    inputs, targets = make_batch(case)
    with torch.no_grad():
        weight[inputs[0, 0] % len(weight), 3] += 1e-3 * weight.abs().max()
    folder = prepared(case).folder
    assert mistakes(run_trace(folder, Grid(1)), compute_reference(model, inputs, targets)), f"{case}"


def test_the_comparison_sees_a_wrong_coefficient(prepared) -> None:
    """Gradients without the auxiliary loss differ in the router, and the tests above would say so."""
    case = CASES[0]
    traced = run_trace(prepared(case).folder, Grid(1), "--set=moe.moe_load_balancing=none")
    found = mistakes(traced, prepared(case).reference)
    assert any("mlp.gate" in mistake for mistake in found), f"{case}: {found}"


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_on_every_layout(case: Case, grid: Grid, prepared) -> None:
    if case.experts % grid.expert != 0:
        pytest.skip("the experts cannot be divided so")
    check(case, grid, prepared(case))

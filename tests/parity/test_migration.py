"""Megatron-Core's balancing losses, with the factors that docs/migration.md gives for its coefficients.

Oracle: Megatron-Core's formulas, written out plainly over the router's logits of MixtralForCausalLM; gradients by autograd. Megatron attaches each
layer's losses to the graph, so they add up over the layers.

Tolerance: 1e-6, absolute, of gradients of up to about 0.1: fp32 sums in another order. A coefficient without its factor changes them by more than 1e-3.
"""

import re
from pathlib import Path

import pytest
import torch
from mixtral import Case, lm_loss, make_batch, make_model, save_model
from ranks import run_ranks, succeed
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-6
AUX, Z = 0.2, 0.03  # Megatron's coefficients; large, so that a wrong factor shows
PAGE = Path(__file__).parents[2] / "docs/migration.md"


def megatron_aux_loss(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """switch_load_balancing_loss_func of one layer: E sum_e f_e P_e with f_e = c_e / (T K) and P_e the mean score."""
    tokens, experts = logits.shape
    scores = torch.softmax(logits, dim=-1)
    count = torch.zeros_like(scores).scatter(1, scores.topk(top_k, dim=1).indices, 1.0).sum(0)
    return experts * torch.sum(count / (tokens * top_k) * scores.mean(0))


def megatron_z_loss(logits: torch.Tensor) -> torch.Tensor:
    """z_loss_func of one layer."""
    return torch.logsumexp(logits, dim=-1).square().mean()


def megatron_gradients(model, inputs, targets, parts: int) -> dict[str, torch.Tensor]:
    """Of the routers. `parts`: data-parallel ranks, each with the losses of its own tokens, whose gradients are averaged."""
    model.zero_grad()
    config = model.config
    out = model(input_ids=inputs)
    loss = lm_loss(out.logits, targets)
    for logits in out.router_logits:
        for part in logits.view(-1, config.num_local_experts).chunk(parts):
            loss = loss + (AUX * megatron_aux_loss(part, config.num_experts_per_tok) + Z * megatron_z_loss(part)) / parts
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if name.endswith("mlp.gate.weight")}


def factors_of_the_page(layers: int, top_k: int) -> dict[str, float]:
    """What docs/migration.md says of Megatron's coefficients."""
    page = PAGE.read_text()
    factors = {}
    for key, coefficient in (("moe_aux_loss_coeff", AUX), ("moe_z_loss_coeff", Z)):
        formula, = re.findall(rf"`{key}: ([az]) ((?:[×/] [LK] ?)+)`", page)
        value = coefficient
        for sign, quantity in re.findall(r"([×/]) ([LK])", formula[1]):
            size = layers if quantity == "L" else top_k
            value = value * size if sign == "×" else value / size
        factors[f"moe.{key}"] = value
    return factors


def router_gradients(folder, layers, top_k, ranks, *more):
    keys = {**factors_of_the_page(layers, top_k), "moe.aux_loss_layers": "each", "parallel.expert_parallel_degree": ranks}
    words = [f"--set={key}={value}" for key, value in keys.items()]
    out = folder / f"trace-{ranks}.safetensors"
    succeed(run_ranks(ranks, ["trace", "--model", folder, "--tokens", folder / "tokens.safetensors", "--out", out, "--grads", *words, *more]))
    prefix, middle = "grad.model.layers.", ".block_sparse_moe.gate.weight"
    return {f"model.layers.{name[len(prefix):-len(middle)]}.mlp.gate.weight": gradient
            for name, gradient in load_file(out).items() if name.endswith(middle)}


@pytest.mark.parametrize("ranks, scope", [(1, "all_ranks"), (2, "all_ranks"), (2, "rank")])
@pytest.mark.parametrize("layers, experts, top_k", [(2, 8, 2), (3, 4, 1), (4, 6, 3)])
def test_router_gradients_are_megatrons_with_the_factors_of_the_page(layers, experts, top_k, ranks, scope, tmp_path):
    case = Case("migration", {"num_hidden_layers": layers, "num_local_experts": experts, "num_experts_per_tok": top_k})
    model = make_model(case)
    save_model(model, tmp_path, case.disk)
    inputs, targets = make_batch(case)
    save_file({"input_ids": inputs, "labels": targets}, tmp_path / "tokens.safetensors")
    expected = megatron_gradients(model, inputs, targets, parts=ranks if scope == "rank" else 1)
    actual = router_gradients(tmp_path, layers, top_k, ranks, f"--set=moe.aux_loss_scope={scope}")
    assert actual.keys() == expected.keys() and len(expected) == layers
    for name, gradient in expected.items():
        assert (actual[name] - gradient).abs().max() <= TOLERANCE, name


def test_without_the_factors_the_gradients_are_others(tmp_path):
    """That the test above can fail."""
    case = Case("migration", {"num_hidden_layers": 3})
    model = make_model(case)
    save_model(model, tmp_path, case.disk)
    inputs, targets = make_batch(case)
    save_file({"input_ids": inputs, "labels": targets}, tmp_path / "tokens.safetensors")
    expected = megatron_gradients(model, inputs, targets, parts=1)
    for wrong in ([f"--set=moe.moe_aux_loss_coeff={AUX}"], [f"--set=moe.moe_z_loss_coeff={Z}"], ["--set=moe.aux_loss_layers=together"]):
        actual = router_gradients(tmp_path, 3, 2, 1, *wrong)
        assert max((actual[name] - gradient).abs().max() for name, gradient in expected.items()) > 1e-3, wrong

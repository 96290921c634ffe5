"""`precision.router` under bf16: the router's logits and their gradient in fp32, or rounded to bf16 as Transformers' are.

Oracle: the router alone, in double, on inputs that both sides know to the last bit: a model of one layer whose attention adds nothing, so that the router
sees its token's embedding (a bf16 number), normalized and rounded to bf16 once. Its z-loss shows the logits, and the gradient of a z-loss beside which all
other losses are next to nothing shows the logits' gradient.

Tolerance: 1e-5 of the value. fp32 sums of 32 terms are off by less, logits that are rounded to bf16 (2^-9) by more than 1e-4.
"""

import pytest
import torch
from mixtral import Case, make_batch, make_model, save_model
from processor import has_bf16
from ranks import run_ranks, succeed
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.skipif(not has_bf16(), reason="this processor has no fast bf16, and the program refuses it")

CASE = Case("router", {"num_hidden_layers": 1, "num_local_experts": 8}, batch=4, sequence=16, disk="bf16")
TOLERANCE, ROUNDED = 1e-5, 1e-4
Z_COEFFICIENT = 1e8


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("router")
    model = make_model(CASE)
    layer = model.model.layers[0]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.post_attention_layernorm.weight.fill_(1)
        layer.mlp.gate.weight.mul_(4).copy_(layer.mlp.gate.weight.to(torch.bfloat16))
    save_model(model, folder, CASE.disk)
    inputs, targets = make_batch(CASE)
    save_file({"input_ids": inputs, "labels": targets}, folder / "tokens.safetensors")
    embedded = model.model.embed_tokens.weight[inputs.flatten()].double()
    normed = (embedded * torch.rsqrt(embedded.square().mean(1, keepdim=True) + model.config.rms_norm_eps)).to(torch.bfloat16).double()
    return folder, normed.detach(), layer.mlp.gate.weight.detach().double()


def expected(normed, gate, rounded: bool):
    """z-loss, and the gradient of Z_COEFFICIENT times it."""
    logits = (normed @ gate.T).requires_grad_()
    seen = logits.to(torch.bfloat16).double() if rounded else logits
    z_loss = torch.logsumexp(seen, 1).square().mean()
    (Z_COEFFICIENT * z_loss).backward()
    return z_loss.item(), logits.grad.T @ normed


def traced(folder, router, ranks):
    out = folder / f"{router}-{ranks}.safetensors"
    keys = {"precision.compute": "bf16", "precision.router": router, "moe.moe_load_balancing": "none", "moe.moe_z_loss_coeff": Z_COEFFICIENT,
            "parallel.expert_parallel_degree": ranks}
    words = [f"--set={key}={value}" for key, value in keys.items()]
    succeed(run_ranks(ranks, ["trace", "--model", folder, "--tokens", folder / "tokens.safetensors", "--out", out, "--grads", *words]))
    tensors = load_file(out)
    return tensors["z_loss"].item(), tensors["grad.model.layers.0.block_sparse_moe.gate.weight"].double()


def apart(actual, wanted):
    return (torch.as_tensor(actual, dtype=torch.float64) - torch.as_tensor(wanted, dtype=torch.float64)).abs().max() / torch.as_tensor(wanted).abs().max()


@pytest.mark.parametrize("ranks", [1, 2])
def test_fp32_rounds_neither_logits_nor_their_gradient(ranks, prepared):
    folder, normed, gate = prepared
    z_loss, gradient = traced(folder, "fp32", ranks)
    exact_z_loss, exact_gradient = expected(normed, gate, rounded=False)
    assert apart(z_loss, exact_z_loss) < TOLERANCE
    assert apart(gradient, exact_gradient) < TOLERANCE


@pytest.mark.parametrize("ranks", [1, 2])
def test_compute_rounds_the_logits_as_transformers_does(ranks, prepared):
    folder, normed, gate = prepared
    z_loss, gradient = traced(folder, "compute", ranks)
    rounded_z_loss, _ = expected(normed, gate, rounded=True)
    exact_z_loss, exact_gradient = expected(normed, gate, rounded=False)
    assert apart(z_loss, rounded_z_loss) < TOLERANCE
    assert apart(z_loss, exact_z_loss) > TOLERANCE
    assert apart(gradient, exact_gradient) > ROUNDED


def test_in_fp32_there_is_nothing_to_round(prepared):
    folder, _, _ = prepared
    out = {}
    for router in ("fp32", "compute"):
        file = folder / f"fp32-{router}.safetensors"
        succeed(run_ranks(1, ["trace", "--model", folder, "--tokens", folder / "tokens.safetensors", "--out", file, "--grads", f"--set=precision.router={router}"]))
        out[router] = load_file(file)
    assert all(torch.equal(out["fp32"][name], tensor) for name, tensor in out["compute"].items())

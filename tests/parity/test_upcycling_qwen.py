"""`model.upcycle_from`: a Qwen3-MoE that begins as a dense Qwen3, whole or cut into pieces, with dense layers among the sparse ones.

Oracle: Qwen3ForCausalLM in fp32 on the same samples; for the weights, the dense checkpoint itself; for the whole model, the export in Transformers.
"""

from __future__ import annotations

import json

import pytest
import torch
from family_training import ROWS, SEQUENCE, batches_of, make_job, tokens_of
from tiny_families import Case, lm_loss, make_model, on_disk
from transformers import AutoModelForCausalLM

# Relative: see test_upcycling.py.
LOSS_TOLERANCE = 1e-5
MATRICES = ("gate_proj", "up_proj", "down_proj")
WINDOW = {"use_sliding_window": True, "sliding_window": 6}
UNITS = 96


# Pieces of the MLP; experts and choices are whole copies of it. With 1 each expert is one.
@pytest.mark.parametrize("pieces, experts, choices, dense_layers, keys", [
    (1, 8, 2, [], {}), (4, 16, 8, [1], {**WINDOW, "max_window_layers": 0}), (2, 8, 4, [0, 2], {"attention_bias": True, "tie_word_embeddings": True})],
    ids=["copies", "quarters, a dense layer, a window", "halves, biases, tied"])
@pytest.mark.parametrize("ranks", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_a_qwen3_moe_begins_as_the_dense_qwen3(pieces, experts, choices, dense_layers, keys, ranks, tmp_path):
    dense = make_model(Case("qwen3", "dense", {"intermediate_size": UNITS, "num_hidden_layers": 3, **keys}))
    dense.save_pretrained(tmp_path / "dense")
    tokens = tokens_of(dense.config.vocab_size)
    job = make_job(tmp_path / "job", tmp_path / "dense", "qwen3_moe", tokens, ranks)
    sparse = {"model_type": "qwen3_moe", "num_experts": experts, "num_experts_per_tok": choices, "moe_intermediate_size": UNITS // pieces,
              "norm_topk_prob": True, "mlp_only_layers": dense_layers, "decoder_sparse_step": 1, "router_aux_loss_coef": 0.0}
    config = {key: value for key, value in dense.config.to_dict().items() if key not in ("layer_types", "max_window_layers", "architectures")}
    (tmp_path / "job/config.json").write_text(json.dumps({**config, **sparse}))
    del job.keys["model.init_from"]
    # A learning rate that moves no fp32 weight: what is exported is what the run started with.
    job = job.with_keys({"model.upcycle_from": str(tmp_path / "dense"), "run.steps": 1, "checkpoint.every": 1, "optimizer.lr": 1e-30, "optimizer.weight_decay": 0.0,
                         "data.micro_batch_size": ROWS // ranks})
    job.must_run(ranks)
    ((_, batch),) = batches_of(tokens, 1)
    with torch.no_grad():
        expected = lm_loss(dense(input_ids=batch[:, :-1]).logits, batch[:, 1:]).item()
    assert job.metrics()[0]["lm_loss"] == pytest.approx(expected, rel=LOSS_TOLERANCE)

    exported, source = job.must_export(tmp_path / "exported"), on_disk(tmp_path / "dense")
    weights = on_disk(exported)
    for layer in range(3):
        stem = f"model.layers.{layer}.mlp."
        whole = {matrix: source[f"{stem}{matrix}.weight"] for matrix in MATRICES}
        if layer in dense_layers:
            assert all(torch.equal(weights[f"{stem}{matrix}.weight"], whole[matrix]) for matrix in MATRICES)
            continue
        router, size = weights[f"{stem}gate.weight"], UNITS // pieces
        assert torch.equal(router, router[::pieces].repeat_interleave(pieces, 0))  # a copy's pieces are chosen together
        assert len(router.unique(dim=0)) == experts // pieces
        for expert in range(experts):
            begin = expert % pieces * size
            cut = {"gate_proj": whole["gate_proj"][begin : begin + size], "up_proj": whole["up_proj"][begin : begin + size],
                   "down_proj": whole["down_proj"][:, begin : begin + size] * pieces}
            assert all(torch.equal(weights[f"{stem}experts.{expert}.{matrix}.weight"], cut[matrix]) for matrix in MATRICES), (layer, expert)
    others = {name for name in source if ".mlp." not in name}
    assert others == {name for name in weights if ".mlp." not in name} and all(torch.equal(weights[name], source[name]) for name in others)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits, own = model(batch[:, :SEQUENCE]).logits, dense(batch[:, :SEQUENCE]).logits
    assert (logits - own).abs().max().item() <= LOSS_TOLERANCE * own.abs().max().item()

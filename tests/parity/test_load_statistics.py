"""The load of the experts in metrics.jsonl: by layer and expert, over the tokens of all ranks and micro-steps of a step.

Oracle: the router logits of MixtralForCausalLM on the same samples (sample_order.py); the statistics by their definitions in docs/balancing.md.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from family_training import batches_of, make_job, tokens_of
from mixtral import BASE, Case, make_model, save_model
from sample_order import SampleOrder
from small_job import SmallJob, write_tokens
from tiny_families import Case as FamilyCase
from tiny_families import make_model as make_family_model

SEED = 5
SEQUENCE, SAMPLES, BATCH = 16, 20, 8
EXPERTS, CHOICES, LAYERS = BASE["num_local_experts"], BASE["num_experts_per_tok"], BASE["num_hidden_layers"]
# Relative, of means over 128 tokens of what comes from router logits, which differ from Transformers' by some 1e-6 of their scale.
TOLERANCE = 1e-5


class Routed:
    """A model on disk, tokens, and a job that begins with both."""

    def __init__(self, folder, case):
        self.folder = folder
        self.model = make_model(case)
        save_model(self.model, folder / "model", case.disk)
        generator = torch.Generator().manual_seed(SEED)
        self.tokens = torch.randint(0, BASE["vocab_size"], (SAMPLES * SEQUENCE + 1,), generator=generator)
        write_tokens(folder / "stream", [self.tokens.numpy()])

    def job(self, output, **keys):
        return SmallJob(self.folder, {"run.output_dir": str(self.folder / output), "run.seed": SEED, "run.steps": 1, "model.config": str(self.folder / "model"),
                                      "model.init_from": str(self.folder / "model"), "data.train": str(self.folder / "stream"), "data.sequence_length": SEQUENCE, "data.micro_batch_size": 1,
                                      "data.global_batch_size": BATCH, **keys})

    def router_logits(self):
        """[L, B * S, E] of the first step's samples."""
        order = SampleOrder(SAMPLES, SEED)
        batch = torch.stack([self.tokens[order[row] * SEQUENCE :][:SEQUENCE] for row in range(BATCH)])
        with torch.no_grad():
            return torch.stack(self.model(input_ids=batch).router_logits).double().view(LAYERS, -1, EXPERTS)


def by_definition(logits, micro_steps):
    """What a record says of the layers; `logits` [L, T, E], the micro-steps' tokens one after the other."""
    probability = logits.softmax(-1)
    chosen = torch.nn.functional.one_hot(logits.topk(CHOICES).indices, EXPERTS).sum(2).double()  # [L, T, E]
    count = chosen.sum(1)
    share = count / count.sum(1, keepdim=True)
    aux = []  # of each micro-step, whose tokens alone are multiplied
    for some_chosen, some_probability in zip(chosen.chunk(micro_steps, 1), probability.chunk(micro_steps, 1)):
        aux.append(EXPERTS * (some_chosen.mean(1) * some_probability.mean(1)).sum(1))
    return {
        "expert_share_by_layer": share,
        "expert_imbalance_by_layer": count.amax(1) / count.mean(1),
        "load_entropy_by_layer": torch.special.entr(share).sum(1) / math.log(EXPERTS),
        "router_confidence_by_layer": probability.amax(2).mean(1),
        "aux_loss_by_layer": torch.stack(aux).mean(0),
        "z_loss_by_layer": logits.logsumexp(2).square().mean(1),
        "expert_imbalance": (count.amax(1) / count.mean(1)).mean(),
        "router_confidence": probability.amax(2).mean(),
        "load_entropy": (torch.special.entr(share).sum(1) / math.log(EXPERTS)).mean(),
    }


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    return Routed(tmp_path_factory.mktemp("routed"), Case("load", seed=3))


LAYOUTS = {"1 rank": (1, {}), "2 ranks": (2, {"parallel.expert_parallel_degree": 2}),
           "4 ranks, 2 replicas": (4, {"parallel.expert_parallel_degree": 2, "parallel.hybrid_shard_degree": 1}),
           "2 ranks, one micro-step": (2, {"data.micro_batch_size": 4})}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_described_as_transformers_routes_it(layout, routed):
    ranks, keys = LAYOUTS[layout]
    job = routed.job(layout, **keys)
    job.must_run(ranks)
    [record] = job.metrics()
    micro_steps = BATCH // (ranks * job.keys["data.micro_batch_size"])
    for name, expected in by_definition(routed.router_logits(), micro_steps).items():
        assert torch.tensor(record[name], dtype=torch.float64).numpy() == pytest.approx(expected.numpy(), rel=TOLERANCE), name
    assert record["dead_experts"] == 0 and record["dead_experts_by_layer"] == [0.0] * LAYERS
    assert record["ranks"] == ranks and record["started_after"] == 0


def test_layers_are_named_by_their_numbers_in_the_model(tmp_path):
    """Layers 0 and 2 of four have no experts: their entries are null, and the others' are where the layers are."""
    model = make_family_model(FamilyCase("qwen3_moe", "dense layers", {"num_hidden_layers": 4, "mlp_only_layers": [0, 2]}))
    model.save_pretrained(tmp_path / "model")
    tokens = tokens_of(model.config.vocab_size)
    job = make_job(tmp_path / "job", tmp_path / "model", "qwen3_moe", tokens, **{"run.steps": 1})
    job.must_run(2)
    ((_, batch),) = batches_of(tokens, 1)
    with torch.no_grad():
        logits = model(input_ids=batch[:, :-1], output_router_logits=True).router_logits
    [record] = job.metrics()
    assert len(logits) == 2
    for name in ("expert_share_by_layer", "expert_imbalance_by_layer", "load_entropy_by_layer", "aux_loss_by_layer", "z_loss_by_layer", "dead_experts_by_layer",
                 "router_confidence_by_layer"):
        assert [value is None for value in record[name]] == [True, False, True, False], name
    for layer, of_layer in zip((1, 3), logits, strict=True):
        count = torch.bincount(of_layer.topk(model.config.num_experts_per_tok).indices.flatten(), minlength=8).double()
        assert record["expert_share_by_layer"][layer] == pytest.approx((count / count.sum()).tolist(), rel=TOLERANCE)
        assert record["z_loss_by_layer"][layer] == pytest.approx(of_layer.logsumexp(1).square().mean().item(), rel=TOLERANCE)


def test_dead_experts_are_counted_across_a_resume(tmp_path):
    """All tokens to experts 1 and 2 of each layer: the others get nothing, and are dead from the hundredth step on."""
    case = Routed(tmp_path, Case("favourites", favourites=(1, 2)))
    job = case.job("out", **{"run.steps": 60, "optimizer.lr": 1e-30, "moe.moe_load_balancing": "none", "checkpoint.every": 60, "metrics.log_every": 10,
                             "data.global_batch_size": 1})
    job.must_run(1)
    job.with_keys({"run.steps": 102}).must_run(1)
    records = job.metrics()
    assert [record["dead_experts"] for record in records] == [0] * 99 + [LAYERS * (EXPERTS - 2)] * 3
    assert records[99]["dead_experts_by_layer"] == [EXPERTS - 2] * LAYERS
    # What there is of each layer and expert is written every log_every steps, and in the first and last.
    detailed = [record["step"] for record in records if "expert_share_by_layer" in record]
    assert detailed == [1, *range(10, 101, 10), 102]
    assert [(record["step"], record["started_after"]) for record in records if "started_after" in record] == [(1, 0), (61, 60)]
    assert json.dumps(records[99]["expert_share_by_layer"]) == json.dumps([[0.0, 0.5, 0.5, *[0.0] * (EXPERTS - 3)]] * LAYERS)

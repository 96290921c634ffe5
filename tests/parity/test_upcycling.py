"""`model.upcycle_from`: a Mixtral that begins as a dense Mistral or Llama.

Oracle: MistralForCausalLM and LlamaForCausalLM in fp32 on the same samples (sample_order.py); for the weights, the dense
checkpoint itself, and the same job on one rank.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from mixtral import BASE, lm_loss
from ranks import ROOT, run_ranks
from safetensors.torch import load_file, save_file
from sample_order import SampleOrder
from small_job import SmallJob, write_tokens
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

SEED = 5
SEQUENCE = 16
SAMPLES = 20
EXPERTS = BASE["num_local_experts"]
# Relative. Both sum in fp32 in another order (see test_trace.py); and two experts' outputs, weighted by numbers that sum
# to 1 up to an fp32 rounding, stand for one.
LOSS_TOLERANCE = 1e-5

SHAPE = {key: BASE[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                    "num_key_value_heads", "max_position_embeddings", "initializer_range")}
ROPE = {"rope_type": "default", "rope_theta": 1000.0}

CASES = {
    "mistral": (MistralConfig, MistralForCausalLM, {}),
    "mistral, window 5, head_dim 12": (MistralConfig, MistralForCausalLM, {"sliding_window": 5, "head_dim": 12}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"rms_norm_eps": 1e-5}),
    "llama, tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True, "num_key_value_heads": 4}),
}


def dense_model(name: str) -> torch.nn.Module:
    config_class, model_class, values = CASES[name]
    torch.manual_seed(SEED)
    model = model_class(config_class(**{**SHAPE, "rope_parameters": ROPE, **values}, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:  # else 1, and a norm that ignores its weight would not be noticed
                parameter.uniform_(0.5, 1.5)
    return model


def mixtral_config(dense: torch.nn.Module) -> dict:
    config = dense.config
    same = ("rms_norm_eps", "tie_word_embeddings", "num_key_value_heads", "head_dim")
    return {**SHAPE, **{key: getattr(config, key) for key in same}, "model_type": "mixtral", "num_local_experts": EXPERTS, "num_experts_per_tok": 2,
            "rope_theta": ROPE["rope_theta"], "sliding_window": getattr(config, "sliding_window", None), "initializer_range": 0.3,
            "router_aux_loss_coef": 0.0}


class Upcycling:
    """A dense model on disk, tokens, and a job of one step that starts from it and changes nothing."""

    def __init__(self, folder: Path, name: str = "mistral"):
        self.dense = dense_model(name)
        self.dense_folder = folder / "dense"
        self.dense.save_pretrained(self.dense_folder)
        self.folder = folder
        (folder / "config.json").write_text(json.dumps(mixtral_config(self.dense)))
        generator = torch.Generator().manual_seed(SEED)
        self.tokens = torch.randint(0, BASE["vocab_size"], (SAMPLES * SEQUENCE + 1,), generator=generator)
        write_tokens(folder / "tokens", [self.tokens.numpy()])

    def job(self, output: str = "out", **keys: object) -> SmallJob:
        # A learning rate that moves no fp32 weight: what is exported is what the run started with.
        return SmallJob(self.folder, {"run.output_dir": str(self.folder / output), "run.steps": 1, "run.seed": SEED, "model.upcycle_from": str(self.dense_folder),
                                      "data.sequence_length": SEQUENCE, "optimizer.lr": 1e-30, "optimizer.weight_decay": 0.0, "checkpoint.export_every": 1,
                                      "data.micro_batch_size": 1, "data.global_batch_size": 4, **keys})

    def weights(self, job: SmallJob) -> dict[str, torch.Tensor]:
        return load_file(job.output / "export/step-00000001/model.safetensors")

    def dense_loss(self) -> float:
        order = SampleOrder(SAMPLES, SEED)
        batch = torch.stack([self.tokens[order[row] * SEQUENCE :][: SEQUENCE + 1] for row in range(4)])
        with torch.no_grad():
            return lm_loss(self.dense(input_ids=batch[:, :-1]).logits, batch[:, 1:]).item()


def expert(weights: dict[str, torch.Tensor], layer: int, number: int) -> dict[str, torch.Tensor]:
    """By the dense model's names."""
    stem = f"model.layers.{layer}.block_sparse_moe.experts.{number}."
    return {"gate_proj": weights[stem + "w1.weight"], "up_proj": weights[stem + "w3.weight"], "down_proj": weights[stem + "w2.weight"]}


def mlp(dense: torch.nn.Module, layer: int) -> dict[str, torch.Tensor]:
    return {name: getattr(dense.model.layers[layer].mlp, name).weight.detach() for name in ("gate_proj", "up_proj", "down_proj")}


@pytest.mark.parametrize("name", CASES)
def test_the_first_loss_is_the_dense_models(name, tmp_path):
    case = Upcycling(tmp_path, name)
    job = case.job(**{"parallel.expert_parallel_degree": 2})
    job.must_run(2)
    assert job.metrics()[0]["lm_loss"] == pytest.approx(case.dense_loss(), rel=LOSS_TOLERANCE)

    weights = case.weights(job)
    for layer in range(SHAPE["num_hidden_layers"]):
        for number in range(EXPERTS):
            for matrix, value in mlp(case.dense, layer).items():
                assert torch.equal(expert(weights, layer, number)[matrix], value), (layer, number, matrix)
        router = weights[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        # A sample of 256 normal numbers: its deviation is within 4 standard errors (1 / sqrt(2 * 256)) of the declared.
        assert router.std().item() == pytest.approx(0.3, rel=4 / (2 * router.numel()) ** 0.5)
    for tensor_name, value in case.dense.state_dict().items():
        if ".mlp." not in tensor_name and not (tensor_name == "lm_head.weight" and case.dense.config.tie_word_embeddings):
            assert torch.equal(weights[tensor_name], value), tensor_name


@pytest.mark.parametrize("keys", [{}, {"model.upcycle_noise": 0.1}, {"model.upcycle_noise": 0.1, "model.upcycle_reinit_fraction": 0.25}],
                         ids=["copies", "noise", "noise and fresh units"])
def test_no_layout_changes_a_bit_of_the_start(keys, tmp_path):
    case = Upcycling(tmp_path)
    alone = case.job("alone", **keys)
    alone.must_run(1)
    layouts = {"expert": (2, {"parallel.expert_parallel_degree": 2}), "sharded": (2, {}),
               "replicated": (4, {"parallel.expert_parallel_degree": 2, "parallel.hybrid_shard_degree": 1})}
    for name, (ranks, layout) in layouts.items():
        job = case.job(name, **keys, **layout)
        job.must_run(ranks)
        weights, expected = case.weights(job), case.weights(alone)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected), name


def test_noise_tells_the_experts_apart(tmp_path):
    case = Upcycling(tmp_path)
    job = case.job(**{"model.upcycle_noise": 0.05})
    job.must_run(1)
    for layer in range(SHAPE["num_hidden_layers"]):
        dense = mlp(case.dense, layer)
        added = {}
        for number in range(EXPERTS):
            for matrix, value in expert(case.weights(job), layer, number).items():
                noise = (value - dense[matrix]) / dense[matrix].std(correction=0)
                added[number, matrix] = noise
                # 1536 normal numbers of deviation 0.05: 4 standard errors of their deviation and of their mean.
                assert noise.std().item() == pytest.approx(0.05, rel=4 / (2 * noise.numel()) ** 0.5), (layer, number, matrix)
                assert abs(noise.mean().item()) <= 4 * 0.05 / noise.numel() ** 0.5, (layer, number, matrix)
        for number in range(1, EXPERTS):
            for matrix in dense:
                alike = torch.corrcoef(torch.stack([added[0, matrix].flatten(), added[number, matrix].flatten()]))[0, 1].item()
                assert abs(alike) <= 4 / dense[matrix].numel() ** 0.5, (layer, number, matrix)


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_fresh_units_are_a_fraction_of_each_expert_and_the_rest_is_copied(fraction, tmp_path):
    case = Upcycling(tmp_path)
    job = case.job(**{"model.upcycle_reinit_fraction": fraction})
    job.must_run(1)
    chosen = set()
    drawn = {"gate_proj": [], "up_proj": [], "down_proj": []}
    for layer in range(SHAPE["num_hidden_layers"]):
        dense = mlp(case.dense, layer)
        for number in range(EXPERTS):
            changed = {}
            for matrix, value in expert(case.weights(job), layer, number).items():
                differs = value != dense[matrix]
                of_unit = differs if matrix == "down_proj" else differs.T  # [H, I]
                assert torch.equal(of_unit.any(0), of_unit.all(0)), "a unit is drawn anew in whole, or not at all"
                changed[matrix] = of_unit.any(0)
                drawn[matrix].append((value[differs] - dense[matrix].mean()) / dense[matrix].std(correction=0))
            assert all(torch.equal(units, changed["gate_proj"]) for units in changed.values())
            assert changed["gate_proj"].sum().item() == round(fraction * SHAPE["intermediate_size"])
            chosen.add(tuple(changed["gate_proj"].nonzero().flatten().tolist()))
    assert len(chosen) == (1 if fraction == 1.0 else SHAPE["num_hidden_layers"] * EXPERTS)
    for matrix, values in drawn.items():  # mean and deviation of the dense matrix, up to 4 standard errors
        values = torch.cat(values)
        assert abs(values.mean().item()) <= 4 / values.numel() ** 0.5, matrix
        assert values.std().item() == pytest.approx(1.0, rel=4 / (2 * values.numel()) ** 0.5), matrix


# Pieces of the MLP; experts and choices are whole copies of it.
@pytest.mark.parametrize("pieces, experts, choices", [(2, 8, 2), (2, 8, 4), (4, 8, 4), (3, 6, 3)])
def test_pieces_of_the_mlp_compute_together_what_it_does(pieces, experts, choices, tmp_path):
    case = Upcycling(tmp_path)
    units = SHAPE["intermediate_size"] // pieces
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": units, "num_local_experts": experts, "num_experts_per_tok": choices}))
    alone, divided = case.job("alone"), case.job("divided", **{"parallel.expert_parallel_degree": 2})
    alone.must_run(1)
    divided.must_run(2)
    for job in (alone, divided):
        assert job.metrics()[0]["lm_loss"] == pytest.approx(case.dense_loss(), rel=LOSS_TOLERANCE)
    weights, of_divided = case.weights(alone), case.weights(divided)
    assert all(torch.equal(weights[name], of_divided[name]) for name in weights)
    for layer in range(SHAPE["num_hidden_layers"]):
        dense = mlp(case.dense, layer)
        router = weights[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        assert torch.equal(router, router[::pieces].repeat_interleave(pieces, 0))  # a copy's pieces are chosen together
        assert len(router.unique(dim=0)) == experts // pieces
        for number in range(experts):
            begin = number % pieces * units
            cut = expert(weights, layer, number)
            assert torch.equal(cut["gate_proj"], dense["gate_proj"][begin : begin + units])
            assert torch.equal(cut["up_proj"], dense["up_proj"][begin : begin + units])
            assert torch.equal(cut["down_proj"], dense["down_proj"][:, begin : begin + units] * pieces)


def test_a_resumed_run_does_not_look_at_the_dense_model_again(tmp_path):
    case = Upcycling(tmp_path)
    job = case.job(**{"checkpoint.every": 1, "optimizer.lr": 1e-3, "run.steps": 2})
    job.with_keys({"run.steps": 1}).must_run(1)
    case.dense_folder.rename(tmp_path / "elsewhere")
    job.must_run(1)
    assert [record["step"] for record in job.metrics()] == [1, 2]


CONFIG_REFUSALS = [
    ({"model_type": "mixtral"}, ['model_type is "mixtral"', "model.init_from"]),
    ({"model_type": "gpt2"}, ['model_type is "gpt2"', '"mistral" or "llama"']),
    ({"attention_bias": True}, ["attention_bias is true", "no such biases"]),
    ({"mlp_bias": True}, ["mlp_bias is true", "no such biases"]),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1000.0}}, ['rope_type is "llama3"']),
    ({"hidden_act": "gelu"}, ['hidden_act is "gelu"']),
    ({"quantization_config": {"quant_method": "awq"}}, ['quant_method is "awq"', '"mxfp4" and "fp8"']),
    ({"hidden_size": 64, "head_dim": 8}, ["hidden_size is 64, but that of model.config is 32", "Set hidden_size to 64 in model.config"]),
    ({"intermediate_size": 100}, ["intermediate_size is 100, but that of model.config's experts is 48 and must divide it"]),
    ({"intermediate_size": 144}, ["one of 3 parts", "8 experts and 2 choices are no whole copies", "multiples of 3"]),
    ({"sliding_window": 8}, ["sliding_window is 8, but that of model.config is 4096"]),
    ({"rms_norm_eps": 1e-3}, ["rms_norm_eps is 0.001, but that of model.config is 1e-06"]),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, ["rope_theta is 500.0, but that of model.config is 1000.0"]),
]


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    return Upcycling(tmp_path_factory.mktemp("refused"))


def assert_refused(ended, *facts):
    assert ended.codes == [2] * len(ended.codes), ended.text
    for fact in facts:
        assert fact in ended.text, f"{fact!r} is not in: {ended.text}"


@pytest.mark.parametrize("changes, facts", CONFIG_REFUSALS, ids=[facts[0] for _, facts in CONFIG_REFUSALS])
def test_a_dense_model_that_does_not_fit_is_refused(changes, facts, refused, tmp_path):
    config = json.loads((refused.dense_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    (tmp_path / "model.safetensors").symlink_to(refused.dense_folder / "model.safetensors")
    ended = run_ranks(1, ["validate", refused.job(**{"model.upcycle_from": str(tmp_path)}).write()])
    assert_refused(ended, *facts, str(tmp_path / "config.json"))


def test_training_refuses_as_validate_does_and_once(refused, tmp_path):
    config = json.loads((refused.dense_folder / "config.json").read_text())
    tensors = load_file(refused.dense_folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for case, changed, facts in [
        ("shape", {**tensors, name: tensors[name][:-1].clone()}, [name, "shape [47, 32]", "makes it [48, 32]"]),
        ("missing", {key: value for key, value in tensors.items() if key != name}, [f'has no tensor "{name}"']),
        ("bias", {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, ["q_proj.bias", "no parameter for"]),
    ]:
        folder = tmp_path / case
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        ended = run_ranks(2, ["train", refused.job(case, **{"model.upcycle_from": str(folder)}).write()])
        assert_refused(ended, *facts)
        assert ended.text.count("error:") == 1, ended.text
    ended = run_ranks(1, ["train", refused.job("none", **{"model.upcycle_from": str(tmp_path / "absent")}).write()])
    assert_refused(ended, "absent", "No such file or directory")


def test_the_docs_dense_model_fits_the_quickstarts_job(tmp_path, monkeypatch):
    page = (ROOT / "docs/upcycling.md").read_text()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_tokens(tmp_path / "tokens", [torch.zeros(5000, dtype=torch.int64).numpy()])
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1], {})  # noqa: S102
    (words,) = [line.split() for line in page.splitlines() if line.startswith("build/conclave validate")]
    tokens = [f"--set=data.{name}={tmp_path / 'tokens'}" for name in ("train", "validation")]
    ended = run_ranks(1, [*words[1:], *tokens])
    assert ended.codes == [0] and "upcycle_from: \"runs/dense\"" in ended.text, ended.text

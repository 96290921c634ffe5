"""`model.resize_vocabulary`: a run that starts from a model whose vocabulary becomes larger or smaller.

Oracle: Transformers' `resize_token_embeddings` with its default, mean_resizing: old rows stay, new ones come from a normal distribution with the mean of
the old rows and 1e-9 times their covariance, or are that mean where the covariance has no full rank. Its draws and ours differ, so distributions are
compared: with N new rows, the mean of a column is within 5 standard errors, and the covariance within 6 / sqrt(N) of what it should be, in units of the
deviations of the two columns.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
from mixtral import BASE, Case, make_model, save_model
from ranks import run_ranks, succeed
from safetensors.torch import load_file
from small_job import SmallJob, random_documents, write_tokens
from transformers import MistralConfig, MistralForCausalLM, MixtralForCausalLM

OLD = BASE["vocab_size"]  # 97, and 32 hidden: a covariance of full rank
MATRICES = ("model.embed_tokens.weight", "lm_head.weight")
MANY = 3000


class Resizing:
    """A model on disk, and a job of one step that starts from it and changes nothing."""

    def __init__(self, folder, **changes):
        self.model = make_model(Case("base", changes))
        self.source = folder / "source"
        save_model(self.model, self.source, "v4")
        self.folder = folder
        self.stored = load_file(self.source / "model.safetensors")

    def job(self, vocabulary, output="out", **keys):
        # A learning rate that moves no fp32 weight: what is exported is what the run started with.
        job = SmallJob(self.folder, {"run.output_dir": str(self.folder / output), "run.steps": 1, "model.config": str(self.source),
                                     "model.init_from": str(self.source), "model.resize_vocabulary": vocabulary, "optimizer.lr": 1e-30,
                                     "optimizer.weight_decay": 0.0, "checkpoint.export_every": 1, "data.micro_batch_size": 1, "data.global_batch_size": 4,
                                     **keys})
        write_tokens(self.folder / "tokens", random_documents())
        return job

    def weights(self, job, ranks=1):
        job.must_run(ranks)
        return load_file(job.output / "export/step-00000001/model.safetensors")


@pytest.fixture(scope="module")
def resizing(tmp_path_factory):
    return Resizing(tmp_path_factory.mktemp("resizing"))


@pytest.fixture(scope="module")
def grown(resizing):
    return resizing.weights(resizing.job(OLD + MANY, "grown"))


def test_old_rows_and_all_other_weights_stay(resizing, grown):
    assert grown.keys() == resizing.stored.keys()
    for name, tensor in resizing.stored.items():
        assert torch.equal(grown[name][:OLD] if name in MATRICES else grown[name], tensor), name


@pytest.mark.parametrize("name", MATRICES)
def test_new_rows_are_drawn_as_transformers_draws_them(name, resizing, grown):
    torch.manual_seed(0)
    theirs = copy.deepcopy(resizing.model)
    theirs.resize_token_embeddings(OLD + MANY)
    old = resizing.stored[name].double()
    covariance = 1e-9 * torch.cov(old.T, correction=0)
    deviations = covariance.diagonal().sqrt()
    for drawn in (grown[name][OLD:].double(), theirs.state_dict()[name][OLD:].double()):
        assert drawn.shape == (MANY, old.shape[1])
        # fp32 steps of the values add to what a mean may be off by.
        off = (drawn.mean(0) - old.mean(0)).abs()
        assert (off <= 5 * deviations / MANY**0.5 + 1e-7 * old.mean(0).abs()).all()
        off = (torch.cov(drawn.T) - covariance).abs() / (deviations[:, None] * deviations)
        assert off.max() <= 6 / MANY**0.5
    assert len(grown[name].unique(dim=0)) == OLD + MANY  # no two rows are alike


def test_embedding_and_head_are_drawn_apart(resizing, grown):
    ours = [(grown[name][OLD:].double() - resizing.stored[name].double().mean(0)) for name in MATRICES]
    correlation = torch.corrcoef(torch.stack([each.flatten() for each in ours]))[0, 1]
    assert abs(correlation) < 0.02


def test_a_covariance_without_full_rank_leaves_the_mean(tmp_path):
    resizing = Resizing(tmp_path, vocab_size=16, bos_token_id=None, eos_token_id=None)  # half as many rows as a row has elements
    job = resizing.job(70)
    theirs = resizing.model
    theirs.resize_token_embeddings(70)
    weights = resizing.weights(job)
    for name in MATRICES:
        expected = theirs.state_dict()[name]
        assert (expected[16:] == expected[16]).all()  # Transformers', as a guard of the test
        assert (weights[name][16:] - expected[16:]).abs().max() <= 1e-7 * expected.abs().max()


@pytest.mark.parametrize("ranks, keys", [(2, {}), (2, {"parallel.expert_parallel_degree": 2}), (4, {"parallel.hybrid_shard_degree": 2}), (4, {})],
                         ids=["2", "2, experts divided", "4, replicas", "4"])
def test_no_layout_changes_a_bit(ranks, keys, resizing, grown):
    for vocabulary in (OLD + MANY, OLD + 1):
        job = resizing.job(vocabulary, f"out-{vocabulary}-{ranks}-{len(keys)}", **keys)
        weights = resizing.weights(job, ranks)
        for name, tensor in weights.items():
            expected = grown[name][:vocabulary] if name in MATRICES else grown[name]
            assert torch.equal(tensor, expected), name  # a row is a function of seed and number: fewer are the first of many


def test_another_seed_draws_other_rows(resizing, grown):
    weights = resizing.weights(resizing.job(OLD + 3, "seed", **{"run.seed": 99}))
    for name in MATRICES:
        assert not torch.equal(weights[name][OLD:], grown[name][OLD:OLD + 3]) and torch.equal(weights[name][:OLD], grown[name][:OLD])


def test_tied_embeddings_grow_together(tmp_path):
    resizing = Resizing(tmp_path, tie_word_embeddings=True)
    weights = resizing.weights(resizing.job(OLD + 5))
    assert "lm_head.weight" not in weights and weights["model.embed_tokens.weight"].shape == (OLD + 5, 32)
    model = MixtralForCausalLM.from_pretrained(tmp_path / "out/export/step-00000001")
    assert model.config.vocab_size == OLD + 5 and model.lm_head.weight is model.model.embed_tokens.weight


def test_the_resized_model_is_one_for_every_command(resizing):
    job = resizing.job(OLD + 11, "commands", **{"checkpoint.every": 1})
    plan = json.loads(succeed(job.run(1, "plan", ["--json"])).outputs[0])
    job.must_run()
    again = job.with_keys({"run.steps": 2})
    again.must_run()  # goes on from its checkpoint, which has the rows
    model = MixtralForCausalLM.from_pretrained(job.must_export(resizing.folder / "exported"))
    assert model.config.vocab_size == OLD + 11 and model.lm_head.weight.shape == (OLD + 11, 32)
    assert json.dumps(plan).count(str(model.num_parameters())) >= 1
    other = again.with_keys({"run.steps": 3, "model.resize_vocabulary": OLD + 12}).run()
    assert other.codes == [2] and "vocab_size" in other.text, other.text


def test_shrinking_is_refused_unless_it_is_asked_for(resizing):
    job = resizing.job(70, "shrunk")
    for command in ("validate", "plan", "train"):
        ended = job.run(1, command)
        assert ended.codes == [2], ended.text
        for fact in ("vocab_size is 97", "model.resize_vocabulary is 70", "drop the last 27 tokens", "model.shrink_vocabulary"):
            assert fact in ended.text, ended.text
    theirs = copy.deepcopy(resizing.model)
    theirs.resize_token_embeddings(70)
    weights = resizing.weights(job.with_keys({"model.shrink_vocabulary": True}))
    for name in MATRICES:
        assert torch.equal(weights[name], theirs.state_dict()[name])


@pytest.mark.parametrize("keys, fact", [
    ({"model.init_from": None}, "neither model.init_from nor model.upcycle_from"),
    ({"model.resize_vocabulary": None, "model.shrink_vocabulary": True}, "there is no model.resize_vocabulary"),
    ({"model.resize_vocabulary": 0}, "model.resize_vocabulary is 0"),
])
def test_keys_that_nothing_would_use_are_refused(keys, fact, resizing):
    ended = resizing.job(OLD + 1).with_keys(keys).run(1, "validate")
    assert ended.codes == [2] and fact in ended.text, ended.text


def test_a_dense_model_grows_as_it_is_upcycled(resizing, tmp_path):
    torch.manual_seed(3)
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
            "initializer_range")
    dense = MistralForCausalLM(MistralConfig(**{key: BASE[key] for key in same}, sliding_window=None, rms_norm_eps=1e-5,
                                             rope_parameters={"rope_type": "default", "rope_theta": 1e6}))
    dense.save_pretrained(tmp_path / "dense")
    job = resizing.job(OLD + 4, "upcycled", **{"model.init_from": None, "model.upcycle_from": str(tmp_path / "dense")})
    weights = [resizing.weights(job.with_keys({"run.output_dir": str(tmp_path / f"out-{ranks}")}), ranks) for ranks in (1, 2)]
    for name in MATRICES:
        old = dense.state_dict()[name]
        assert torch.equal(weights[0][name][:OLD], old) and torch.equal(weights[0][name], weights[1][name])
        assert (weights[0][name][OLD:] - old.mean(0)).abs().max() < 1e-3 * old.std()
    ended = run_ranks(1, ["validate", job.with_keys({"model.resize_vocabulary": None}).write()])
    succeed(ended)

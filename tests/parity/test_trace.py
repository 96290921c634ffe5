"""Parity with Transformers: logits, losses and every gradient of the same checkpoint and tokens, on every kind of layout.

Oracle: MixtralForCausalLM in fp32, in this process. Tolerance: 1e-5 of each tensor's largest element, some hundred times the rounding of fp32
sums in another order; a wrong formula is off by far more.
"""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.ranks import must_run, set_options
from support.tiny_model import by_disk_name, make_model, save_model

TOLERANCE = 1e-5

SHAPES = {
    "base": {},
    "multi_head": {"num_key_value_heads": 4},
    "explicit_head_dim": {"head_dim": 24},
    "tied": {"tie_word_embeddings": True},
    "short_window": {"sliding_window": 5},
    "long_window": {"sliding_window": 64},
    "six_experts_top3": {"num_local_experts": 6, "num_experts_per_tok": 3},
    "four_experts_top1": {"num_local_experts": 4, "num_experts_per_tok": 1, "num_hidden_layers": 1},
    "odd_sizes": {"hidden_size": 40, "intermediate_size": 37, "vocab_size": 101},
}

# world size, keys of `parallel`
LAYOUTS = {
    "one_rank": (1, {}),
    "shard2": (2, {"expert_parallel_degree": 1}),
    "expert2": (2, {"expert_parallel_degree": 2}),
    "expert2_shard2": (4, {"expert_parallel_degree": 2}),
    "expert2_replica2": (4, {"expert_parallel_degree": 2, "hybrid_shard_degree": 2}),
    "expert4_shard2": (4, {"expert_parallel_degree": 4, "hybrid_shard_degree": 2}),
    "expert4_unsharded": (4, {"expert_parallel_degree": 4, "hybrid_shard_degree": 1}),
}


def make_tokens(path, vocabulary, batch=4, sequence=16, ignored=False, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (batch, sequence + 1), generator=generator)
    inputs, labels = tokens[:, :-1].clone(), tokens[:, 1:].clone()
    if ignored:
        labels[0, : sequence // 2] = -100
        labels[-1] = -100
    save_file({"input_ids": inputs, "labels": labels}, path)
    return inputs, labels


def reference(model, inputs, labels):
    """What Transformers computes. The loss it trains on: the mean over counted labels + coefficient x auxiliary loss."""
    model.zero_grad()
    out = model(input_ids=inputs)
    lm_loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    (lm_loss + model.config.router_aux_loss_coef * out.aux_loss).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = {"logits": out.logits.detach(), "lm_loss": lm_loss.detach(), "aux_loss": out.aux_loss.detach()}
    return expected | {f"grad.{name}": tensor for name, tensor in by_disk_name(model, gradients).items()}


def assert_same(traced, expected):
    missing = expected.keys() - traced.keys()
    assert not missing, f"not traced: {sorted(missing)}"
    wrong = {}
    for name, tensor in expected.items():
        assert traced[name].shape == tensor.shape, name
        difference = (traced[name] - tensor).abs().max().item()
        scale = tensor.abs().max().item()
        if not difference <= TOLERANCE * scale:
            wrong[name] = (difference, scale)
    assert not wrong, f"largest difference and scale: {wrong}"


def check(tmp_path, model, layout, save_options=None, **token_options):
    world, parallel = LAYOUTS[layout]
    folder = save_model(model, tmp_path / "model", **(save_options or {}))
    inputs, labels = make_tokens(tmp_path / "tokens.safetensors", model.config.vocab_size, **token_options)
    must_run(world, "trace", "--model", folder, "--tokens", tmp_path / "tokens.safetensors", "--out", tmp_path / "out.safetensors", "--grads",
             *set_options(**{f"parallel__{key}": value for key, value in parallel.items()}))
    assert_same(load_file(tmp_path / "out.safetensors"), reference(model, inputs, labels))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_with_expert_parallelism(tmp_path, shape):
    check(tmp_path, make_model(**SHAPES[shape]), "expert2")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(tmp_path, layout):
    check(tmp_path, make_model(), layout)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_on_every_layout(tmp_path, shape, layout, seed):
    if SHAPES[shape].get("num_local_experts", 8) % LAYOUTS[layout][1].get("expert_parallel_degree", 1):
        pytest.skip("the experts do not divide")
    check(tmp_path, make_model(seed=seed, **SHAPES[shape]), layout, seed=seed)


def test_ignored_labels(tmp_path):
    check(tmp_path, make_model(), "expert2", ignored=True)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_that_the_ranks_do_not_divide(tmp_path, batch):
    """With one sequence on four ranks, three ranks have no token, yet take part in everything."""
    check(tmp_path, make_model(), "expert2_shard2", batch=batch)


def test_one_token_per_rank(tmp_path):
    check(tmp_path, make_model(), "expert2", batch=2, sequence=1)


@pytest.mark.parametrize("layout", ["expert2", "expert4_shard2"])
def test_all_tokens_to_one_expert(tmp_path, layout):
    """Experts and whole ranks receive nothing. The norm before the router makes its input's first element positive for every token."""
    model = make_model(num_experts_per_tok=1)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 4.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.experts.down_proj[:, 0] = 0
            layer.mlp.gate.weight.zero_()
            layer.mlp.gate.weight[1, 0] = 3.0
    check(tmp_path, model, layout)


@pytest.mark.parametrize("form", ["sharded", "bf16"])
def test_forms_on_disk(tmp_path, form):
    model = make_model()
    if form == "bf16":
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()  # what the file can hold
        folder = save_model(copy.deepcopy(model).bfloat16(), tmp_path / "model")
        model.save_pretrained = lambda *_, **__: None  # the folder is there
        assert folder.exists()
        check(tmp_path, model, "expert2")
    else:
        check(tmp_path, model, "expert2", save_options={"max_shard_size": "60KB"})
        assert (tmp_path / "model" / "model.safetensors.index.json").exists()


def test_fused_names_on_disk(tmp_path):
    """A Transformers 5 checkpoint that keeps the names it has in memory."""
    model = make_model()
    folder = save_model(model, tmp_path / "model")
    save_file({name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}, folder / "model.safetensors", {"format": "pt"})
    model.save_pretrained = lambda *_, **__: None
    check(tmp_path, model, "expert2")


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_recomputation_gives_the_same_bits(tmp_path, checkpointing):
    folder = save_model(make_model(), tmp_path / "model")
    make_tokens(tmp_path / "tokens.safetensors", 97)
    for name in ("none", checkpointing):
        must_run(2, "trace", "--model", folder, "--tokens", tmp_path / "tokens.safetensors", "--out", tmp_path / f"{name}.safetensors", "--grads",
                 *set_options(parallel__expert_parallel_degree=2, memory__activation_checkpointing=name))
    kept, repeated = (load_file(tmp_path / f"{name}.safetensors") for name in ("none", checkpointing))
    assert kept.keys() == repeated.keys()
    assert all(torch.equal(kept[name], repeated[name]) for name in kept)

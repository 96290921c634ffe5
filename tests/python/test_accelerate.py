"""conclave.accelerate computes what Transformers does.

Oracle: the same model of Transformers before it was accelerated, with its own functions ("eager" attention). Tolerance in fp32: sums of a few hundred
terms in another order, 1e-5 of the largest value; in bf16 both sides round at different places: against the model in fp32, twice plain bf16's own error.
"""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from compared_steps import error_of
from test_transform import compare_training
from tiny_models import FURTHER_SHAPES, SHAPES, batches, tiny_model
from torch import nn
from torch_ranks import run_torch_ranks

import conclave
from conclave._library import operators

TOLERANCE = 1e-5
SEED = 11
TURNED_OTHERWISE = ("deepseek_v2",)  # by complex numbers


def forward_and_backward(model, tokens, labels=None, **options):
    """(loss, logits, gradients by name)."""
    output = model(input_ids=tokens, labels=tokens if labels is None else labels, **options)
    output.loss.backward()
    return output.loss.detach(), output.logits.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def compare(model, tokens, labels=None, accelerations=None, tolerance=TOLERANCE, **options) -> None:
    accelerated = conclave.accelerate(copy.deepcopy(model), **(accelerations or {}))
    loss, logits, gradients = forward_and_backward(model, tokens, labels, **options)
    own_loss, own_logits, own_gradients = forward_and_backward(accelerated, tokens, labels, **options)
    what = f"{type(model).__name__}, tokens {tuple(tokens.shape)}, seed {SEED}"
    assert own_loss.item() == pytest.approx(loss.item(), rel=tolerance), what
    assert error_of(own_logits, logits) < tolerance, what
    assert own_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert error_of(own_gradients[name], gradient) < tolerance, f"{what}: gradient of {name}"


@pytest.mark.parametrize("family", [*SHAPES, *FURTHER_SHAPES])
def test_every_family_computes_the_same(family):
    model = tiny_model(family)
    placed = conclave.accelerate(copy.deepcopy(model)).conclave_acceleration
    assert placed.attention and placed.norms and placed.loss == 1
    assert bool(placed.rotary) == (family not in TURNED_OTHERWISE)
    compare(model, batches(1, 1, seed=SEED)[0, 0])


@pytest.mark.parametrize("sequences, length", [(1, 1), (3, 1), (1, 2), (2, 17), (1, 63), (4, 64)])
def test_shapes(sequences, length):
    tokens = batches(1, 1, sequences, length, seed=SEED)[0, 0]
    labels = torch.where(torch.rand(tokens.shape, generator=torch.Generator().manual_seed(SEED)) < 0.3, -100, tokens)
    labels[:, -1] = tokens[:, -1]
    if length > 1:
        compare(tiny_model("qwen3_moe"), tokens, labels)
    else:  # nothing follows, so there is no loss
        model = tiny_model("qwen3_moe")
        accelerated = conclave.accelerate(copy.deepcopy(model))
        assert error_of(accelerated(input_ids=tokens).logits.detach(), model(input_ids=tokens).logits.detach()) < TOLERANCE


@pytest.mark.parametrize("window", [1, 2, 7, 40, 63, 64])
def test_sliding_window(window):
    compare(tiny_model("mixtral", sliding_window=window), batches(1, 1, 2, 63, seed=SEED)[0, 0])


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("why", ["padding", "dropout", "packed"])
def test_what_the_kernel_cannot_honour_goes_to_sdpa_with_a_warning(why, window):
    tokens, options = batches(1, 1, 2, 12, seed=SEED)[0, 0], {}
    model = tiny_model("mixtral", sliding_window=window)
    if why == "padding":
        options["attention_mask"] = torch.ones_like(tokens)
        options["attention_mask"][1, :3] = 0
    elif why == "packed":
        options["position_ids"] = torch.cat([torch.arange(5), torch.arange(7)])[None].expand(2, -1)
    else:
        model.config.attention_dropout = 1e-9  # is computed by sdpa, and drops nothing
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 1e-9
    from conclave.accelerated_attention import _warn

    _warn.cache_clear()
    labels = tokens.clone()
    if why == "padding":
        labels[1, :4] = -100  # what the last masked position says counts on neither side
    with pytest.warns(RuntimeWarning, match="sdpa computes attention instead of Conclave's kernel"):
        accelerated = conclave.accelerate(copy.deepcopy(model))
        loss, logits, _ = forward_and_backward(model, tokens, labels, **options)
        own_loss, own_logits, _ = forward_and_backward(accelerated, tokens, labels, **options)
    seen = options.get("attention_mask", torch.ones_like(tokens)).bool()
    assert own_loss.item() == pytest.approx(loss.item(), rel=TOLERANCE)
    assert error_of(own_logits[seen], logits[seen]) < TOLERANCE


def test_a_mask_of_ones_is_no_mask():
    tokens = batches(1, 1, seed=SEED)[0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(tiny_model("mixtral"), tokens, attention_mask=torch.ones_like(tokens))


def test_generate_with_a_cache():
    model = tiny_model("mixtral").eval()
    accelerated, tokens = conclave.accelerate(copy.deepcopy(model)), batches(1, 1, seed=SEED)[0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(accelerated.generate(tokens, max_new_tokens=6, do_sample=False, use_cache=True),
                           model.generate(tokens, max_new_tokens=6, do_sample=False, use_cache=True))


@pytest.mark.parametrize("family", list(SHAPES))
def test_bf16(family):
    tokens, model = batches(1, 1, 2, 33, seed=SEED)[0, 0], tiny_model(family)
    _, right, _ = forward_and_backward(copy.deepcopy(model), tokens)
    model = model.bfloat16()
    _, plain, plain_gradients = forward_and_backward(copy.deepcopy(model), tokens)
    accelerated = conclave.accelerate(model)
    loss, logits, gradients = forward_and_backward(accelerated, tokens)
    assert logits.dtype == torch.bfloat16 and all(gradients[name].dtype == value.dtype for name, value in plain_gradients.items())
    middle = [(each.float() - right).abs().mean() for each in (logits, plain)]  # routing may flip for a token: the mean, not the worst
    assert middle[0] < 2 * middle[1], f"accelerated {middle[0]:.2e}, plain {middle[1]:.2e} from fp32"
    for name, gradient in plain_gradients.items():
        alike = torch.cosine_similarity(gradients[name].float().flatten(), gradient.float().flatten(), dim=0)
        assert alike > 0.95, f"{family}: gradient of {name} points elsewhere ({alike:.3f})"


def test_autocast():
    tokens, model = batches(1, 1, 2, 33, seed=SEED)[0, 0], tiny_model("mixtral")
    accelerated = conclave.accelerate(copy.deepcopy(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, own = model(input_ids=tokens, labels=tokens), accelerated(input_ids=tokens, labels=tokens)
    assert own.logits.dtype == plain.logits.dtype and own.loss.item() == pytest.approx(plain.loss.item(), rel=5e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_gives_the_same_bits(checkpointing):
    tokens = batches(1, 1, seed=SEED)[0, 0]
    model = conclave.accelerate(tiny_model("mixtral"))
    again = copy.deepcopy(model)
    again.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    _, _, first = forward_and_backward(model, tokens)
    _, _, second = forward_and_backward(again, tokens)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_model_of_the_family_is_left_alone(monkeypatch):
    conclave.accelerate(tiny_model("mixtral"))
    plain, tokens = tiny_model("mixtral"), batches(1, 1, seed=SEED)[0, 0]
    called = []
    monkeypatch.setattr("conclave.accelerated_attention._turned", lambda *arguments: called.append(arguments))
    forward_and_backward(plain, tokens)
    assert not called and plain.config._attn_implementation == "eager" and not hasattr(plain, "conclave_acceleration")


def test_every_part_can_be_refused():
    parts = ("attention", "rotary", "norms", "loss", "linear", "gathers", "memory")
    model = tiny_model("mixtral")
    classes = [type(module) for module in model.modules()]
    conclave.accelerate(model, **dict.fromkeys(parts, False))
    assert [type(module) for module in model.modules()] == classes and model.config._attn_implementation == "eager"
    assert all(getattr(model.conclave_acceleration, part) is None for part in parts)
    for part in parts:
        compare(tiny_model("mixtral"), batches(1, 1, seed=SEED)[0, 0], accelerations={**dict.fromkeys(parts, False), part: None})


def test_a_part_that_fits_nowhere_is_refused_where_it_is_asked_for():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

    assert conclave.accelerate(Plain()).conclave_acceleration.attention == 0
    for part, words in (("attention", "has no attention of Transformers"), ("rotary", "no rotary embedding"), ("norms", "no RMSNorm"),
                        ("loss", "not Transformers' loss of a causal language model")):
        with pytest.raises(conclave.UnsupportedModelError, match=words):
            conclave.accelerate(Plain(), **{part: True})
    with pytest.raises(conclave.UnsupportedModelError, match="rotary=True"):
        conclave.accelerate(tiny_model("deepseek_v2"), rotary=True)


def test_a_norm_that_multiplies_otherwise_is_left_alone():
    class OnePlusRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.randn(8)), 1e-6

        def forward(self, x):
            return (1 + self.weight) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    assert conclave.accelerate(nn.Sequential(OnePlusRMSNorm())).conclave_acceleration.norms == 0


def parameters_and_gradients(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return [(nn.Parameter(torch.randn(shape, generator=generator)), torch.randn(shape, generator=generator)) for shape in ((), (1,), (7, 5), (3, 0), (129,))]


@pytest.mark.parametrize("options", [{}, dict(lr=0.03, betas=(0.8, 0.99), eps=1e-5, weight_decay=0.3), dict(weight_decay=0.0)])
def test_adamw_equals_pytorchs(options):
    plain, own = parameters_and_gradients(SEED), parameters_and_gradients(SEED)
    optimizers = [torch.optim.AdamW([each for each, _ in plain], **options), conclave.AdamW([each for each, _ in own], **options)]
    for step in range(6):
        for side, pairs in enumerate((plain, own)):
            for i, (parameter, gradient) in enumerate(pairs):
                parameter.grad = None if (i + step) % 4 == 0 else gradient * (step + 1)
            optimizers[side].step()
        if step == 2:  # each goes on with the other's state
            states = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
            optimizers[0].load_state_dict(states[1]), optimizers[1].load_state_dict(states[0])
        for (parameter, _), (other, _) in zip(plain, own, strict=True):
            torch.testing.assert_close(other.detach(), parameter.detach(), rtol=1e-6, atol=1e-7)


def test_adamw_refuses_what_it_has_not():
    for option in ("amsgrad", "maximize", "capturable", "differentiable", "foreach"):
        with pytest.raises(conclave.UnsupportedError, match=f"has no {option}"):
            conclave.AdamW([nn.Parameter(torch.zeros(2))], **{option: True})
    with pytest.raises(conclave.UnsupportedError, match=r"updates fp32 parameters on CPUs, and one of \(2,\) is torch.float64"):
        conclave.AdamW([nn.Parameter(torch.zeros(2, dtype=torch.float64))])


def test_the_loss_takes_shifted_labels_other_numbers_and_none():
    model = tiny_model("mixtral")
    accelerated, tokens = conclave.accelerate(copy.deepcopy(model)), batches(1, 1, seed=SEED)[0, 0]
    for options in (dict(labels=tokens, shift_labels=tokens), dict(labels=tokens, num_items_in_batch=torch.tensor(7)), dict(labels=tokens, num_items_in_batch=7),
                    dict(labels=torch.where(tokens < 20, 3, tokens), ignore_index=3)):
        plain, own = model(input_ids=tokens, **options), accelerated(input_ids=tokens, **options)
        assert own.loss.dtype == torch.float32 and own.loss.item() == pytest.approx(plain.loss.item(), rel=TOLERANCE), options
    none = torch.full_like(tokens, -100)
    assert accelerated(input_ids=tokens, labels=none).loss.isnan() and model(input_ids=tokens, labels=none).loss.isnan()


def squares(i: int) -> torch.Tensor:
    return torch.full((200_000,), float(i)) ** 2


def test_a_data_loader_forks_with_memory_kept():
    operators().keep_large_blocks()
    held = [torch.ones(500_000) for _ in range(3)]
    dataset = torch.utils.data.TensorDataset(torch.arange(8))
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context="fork",
                                         collate_fn=lambda rows: sum(squares(int(row[0])) for row in rows))
    assert [batch[0].item() for batch in loader] == [1.0, 13.0, 41.0, 85.0]
    assert all(each.sum().item() == 500_000 for each in held)


def on_ranks() -> None:
    for family in SHAPES:
        compare_training(family, dist.get_world_size(), sharded=True, steps=3, aux_loss=True, accelerated=True)
    compare_training("mixtral", 1, sharded=True, steps=3, aux_loss=True, accelerated=True, checkpointing=True)
    compare_training("mixtral", 1, sharded="by hand", steps=2, aux_loss=False, accelerated=True)
    compare_training("mixtral", dist.get_world_size(), sharded=False, steps=2, aux_loss=False, accelerated=True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_equals_plain_transformers(ranks):
    run_torch_ranks(ranks, on_ranks)


def gathers_by_memory() -> None:
    mesh = conclave.init({"expert_parallel_degree": 1})
    name = mesh.dense_data.get_group(mesh.dense_data.ndim - 1).group_name
    bytes_read = []
    for gathers in (False, None):
        model = conclave.accelerate(conclave.transform(tiny_model("mixtral")), gathers=gathers)
        conclave.fully_shard(model)
        tokens = batches(1, dist.get_world_size(), seed=SEED)[0, dist.get_rank()]
        model(input_ids=tokens, labels=tokens).loss.backward()
        bytes_read.append(operators().group_traffic(name)[1])
    assert bytes_read[0] == 0 and bytes_read[1] > 50_000, bytes_read


def test_sharded_parameters_are_read_from_the_other_ranks_memory():
    run_torch_ranks(2, gathers_by_memory)

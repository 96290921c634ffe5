"""Models besides the plain causal one: tied embeddings, reward models, deep copies, models of one's own; and what their folders say.

Oracle: Transformers, safetensors and plain PyTorch in one process.
"""

import copy
import json
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from compared_steps import error_of, whole
from safetensors.torch import load_file
from tiny_models import batches, tiny_config, tiny_model
from torch_ranks import run_torch_ranks
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import conclave


def shared_folder() -> Path:
    shared = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    return Path(shared[0])


def on_meta(build):
    with torch.device("meta"):
        return build()


def own_tokens() -> torch.Tensor:
    return batches(1, dist.get_world_size())[0, dist.get_rank()]


def tied(family: str, **changes):
    return tiny_model(family, tie_word_embeddings=True, **changes)


def check_tied(family: str, folder: Path) -> None:
    """On the meta device embedding and head stay one parameter: loaded, drawn and given by rank 0; its gradient is that of both."""
    plain = tied(family, seed=3)
    if dist.get_rank() == 0:
        plain.save_pretrained(folder)
    dist.barrier()
    for sharded in (False, True):
        for start in ("load", "rank 0", "draw"):
            model = conclave.transform(on_meta(lambda: AutoModelForCausalLM.from_config(plain.config, attn_implementation="eager")))
            if sharded:
                conclave.fully_shard(model)
            if start == "load":
                conclave.load_pretrained(model, folder)
            elif start == "rank 0":
                conclave.load_state_dict_from_rank0(model, plain.state_dict() if dist.get_rank() == 0 else None)
            else:
                conclave.materialize(model, seed=2)
            what = f"{family}, sharded {sharded}, {start}"
            assert model.lm_head.weight is model.model.embed_tokens.weight, what
            if start == "draw":
                assert whole(model.lm_head.weight).detach().std().item() == pytest.approx(model.config.initializer_range, rel=0.1), what
                continue
            assert all(torch.equal(whole(value), plain.get_parameter(name)) for name, value in model.named_parameters()), what
            tokens = batches(1, dist.get_world_size())[0]
            plain.zero_grad()
            torch.stack([plain(input_ids=each, labels=each).loss for each in tokens]).mean().backward()
            model.train()(input_ids=own_tokens(), labels=own_tokens()).loss.backward()
            if not sharded:
                conclave.synchronize_gradients(model)
            assert error_of(whole(model.lm_head.weight.grad), plain.lm_head.weight.grad) < 1e-5, what
            conclave.save_pretrained(model, folder / "again")
            if dist.get_rank() == 0:
                loaded = AutoModelForCausalLM.from_pretrained(folder / "again", attn_implementation="eager")
                assert torch.equal(loaded.lm_head.weight, plain.lm_head.weight), what
            dist.barrier()


def reward_model(family: str):
    torch.manual_seed(4)
    return AutoModelForSequenceClassification.from_config(tiny_config(family, num_labels=1, pad_token_id=0), attn_implementation="eager")


def check_reward_model(family: str, folder: Path) -> None:
    """From a causal checkpoint: the body is the checkpoint's, the head is new and the same on every layout; its own folder loads in Transformers."""
    causal = tiny_model(family, seed=5)
    if dist.get_rank() == 0:
        causal.save_pretrained(folder / "causal")
    dist.barrier()
    heads = []
    for degree, sharded, start in ((2, True, on_meta), (1, False, on_meta), (2, False, lambda build: build())):
        conclave.init({"expert_parallel_degree": degree})
        model = conclave.transform(start(lambda: reward_model(family)))
        if sharded:
            conclave.fully_shard(model)
        with pytest.warns(UserWarning, match="score.weight .* starts anew"):
            conclave.load_pretrained(model, folder / "causal")
        for name, value in model.named_parameters():
            if name.startswith("model."):
                assert torch.equal(whole(value), causal.get_parameter(name)), f"{family}: {name}"
        heads.append(whole(model.score.weight).detach())
        assert torch.isfinite(heads[-1]).all() and heads[-1].std() > 0
    assert torch.equal(heads[0], heads[1]) and torch.equal(heads[2], reward_model(family).score.weight)
    conclave.save_pretrained(model, folder / "reward")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = conclave.load_pretrained(conclave.transform(on_meta(lambda: reward_model(family))), folder / "reward")
    if dist.get_rank() == 0:
        loaded, report = AutoModelForSequenceClassification.from_pretrained(folder / "reward", output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        assert torch.equal(loaded.score.weight, heads[2])
    assert torch.equal(again.eval()(own_tokens()).logits, model.eval()(own_tokens()).logits)
    # A head is no excuse for a body that lacks something, nor may a causal model lack its head.
    for other, text in ((tiny_model(family), "lacks"), (on_meta(lambda: AutoModelForSequenceClassification.from_config(
            tiny_config(family, num_labels=1, num_hidden_layers=4))), "lacks")):
        with pytest.raises(conclave.CheckpointError, match=text):
            conclave.load_pretrained(conclave.transform(other), folder / "reward")


def check_deep_copies() -> None:
    """A copy (for an average of weights, or DPO's reference) and its original do not know of each other."""
    model = conclave.transform(tiny_model("mixtral"))
    reference = copy.deepcopy(model)
    before = {name: whole(value).detach().clone() for name, value in reference.named_parameters()}
    reference.gradient_checkpointing_enable()
    assert reference.is_gradient_checkpointing and not model.is_gradient_checkpointing
    reference.eval()
    assert model.training
    optimizer = torch.optim.AdamW(conclave.parameter_groups(model), lr=1e-2)
    model(input_ids=own_tokens(), labels=own_tokens()).loss.backward()
    conclave.synchronize_gradients(model)
    optimizer.step()
    for name, value in reference.named_parameters():
        assert value.grad is None and torch.equal(whole(value), before[name]), name
    assert not torch.equal(whole(model.model.layers[0].mlp.experts.down_proj), before["model.layers.0.mlp.experts.down_proj"])
    plain = tiny_model("mixtral").eval()
    assert error_of(reference(own_tokens()).logits, plain(own_tokens()).logits) < 1e-5
    assert conclave.load_metrics(model)["expert_imbalance"] >= 1
    assert conclave.load_metrics(reference)["expert_imbalance"] == 0
    conclave.fully_shard(reference)  # also what comes later is the copy's own
    reference.train()(input_ids=own_tokens(), labels=own_tokens()).loss.backward()
    assert conclave.clip_grad_norm_(reference, 1.0) > 0
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(model)
    assert error_of(averaged(own_tokens()).logits, model(own_tokens()).logits) < 1e-5


def check_saved_configuration(folder: Path) -> None:
    """What MoEConfig switches on is the training's, and the folder's configuration is the one that was given."""
    given = dict(output_router_logits=False, router_aux_loss_coef=0.07)
    for number, config in enumerate((conclave.MoEConfig(moe_load_balancing="aux_loss", moe_aux_loss_coeff=0.5), conclave.MoEConfig(),
                                     conclave.MoEConfig(moe_load_balancing="sinkhorn"))):
        model = conclave.transform(tiny_model("mixtral", **given), config)
        aux = model(input_ids=own_tokens(), labels=own_tokens()).aux_loss
        assert (aux is not None) == (config.moe_load_balancing == "aux_loss")
        conclave.save_pretrained(model, folder / str(number))
        if dist.get_rank() == 0:
            tiny_model("mixtral", **given).save_pretrained(folder / f"plain-{number}")
            saved, right = (json.loads((folder / name / "config.json").read_text()) for name in (str(number), f"plain-{number}"))
            assert saved == right
            loaded = AutoModelForCausalLM.from_pretrained(folder / str(number))
            mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
            loaded.generate(torch.ones_like(mask), attention_mask=mask, max_new_tokens=2, pad_token_id=0)
        dist.barrier()


class OwnModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.embedding, self.norm, self.head = torch.nn.Embedding(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 64)
        self.moe = conclave.nn.MoE(8, 16, 8, 2, name="moe")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.moe(self.norm(self.embedding(tokens.flatten())))[0])


def check_model_of_ones_own(folder: Path) -> None:
    """Its folder holds its tensors under its own names, whole, and goes back into any layout."""
    conclave.init({"expert_parallel_degree": 2})
    model = OwnModel()
    model(own_tokens())  # the running mean is of the state
    conclave.save_pretrained(model, folder / "one")
    conclave.save_pretrained(model, folder / "parts", max_shard_size=2_000)
    expected = {name: whole(tensor).detach() for name, tensor in model.state_dict().items()}
    if dist.get_rank() == 0:
        saved = load_file(folder / "one/model.safetensors")
        assert saved.keys() == expected.keys()
        assert all(torch.equal(saved[name], expected[name]) for name in saved if "running" not in name)
        assert not (folder / "one/config.json").exists() and len(list((folder / "parts").glob("*.safetensors"))) > 1
    for degree, path in ((1, "one"), (2, "parts")):
        conclave.init({"expert_parallel_degree": degree})
        again = OwnModel()
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.zero_()
        conclave.load_pretrained(again, folder / path)
        for name, value in again.named_parameters():
            assert torch.equal(whole(value), expected[name]), f"degree {degree}: {name}"
    dist.barrier()


def on_two_ranks() -> None:
    folder = shared_folder()
    conclave.init({"expert_parallel_degree": 2})
    check_deep_copies()
    check_saved_configuration(folder / "configuration")
    for family in ("mixtral", "qwen3_moe"):
        conclave.init({"expert_parallel_degree": 2})
        check_tied(family, folder / f"tied-{family}")
        check_reward_model(family, folder / f"reward-{family}")
    check_model_of_ones_own(folder)


def test_other_models():
    run_torch_ranks(2, on_two_ranks)

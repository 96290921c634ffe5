"""Delayed initialization of anything: tied embeddings, buffers, heads that a checkpoint lacks; what is left is named.

Oracle: the same model as Transformers builds or loads it on a real device.
"""

import tempfile
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from compared_steps import whole
from tiny_models import batches, tiny_config, tiny_model
from torch_ranks import run_torch_ranks
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import conclave

SEED = 5


def shared_folder() -> Path:
    shared = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    return Path(shared[0])


def on_meta(kind, config):
    with torch.device("meta"):
        return kind.from_config(config)


def prepare(model, sharded: bool):
    conclave.transform(model)
    return conclave.fully_shard(model) if sharded else model


def same_as(model, plain) -> None:
    """Every parameter and buffer, and what the model computes."""
    for (name, left), right in zip([*model.named_parameters(), *model.named_buffers()], [*plain.parameters(), *plain.buffers()], strict=True):
        assert torch.equal(whole(left.detach()), right.detach()), name
    tokens = batches(1, 1, seed=SEED)[0, 0]
    with torch.no_grad():
        assert torch.allclose(model.eval()(tokens)[0], plain.eval()(tokens)[0], atol=1e-5)


def tied_embeddings_stay_tied() -> None:
    plain = tiny_model("mixtral", tie_word_embeddings=True)
    state = {name: tensor for name, tensor in plain.state_dict().items() if name != "model.embed_tokens.weight"}  # under its other name alone
    folder = shared_folder()
    if dist.get_rank() == 0:
        plain.save_pretrained(folder)
    dist.barrier()
    for sharded in (False, True):
        for fill in (lambda model: conclave.load_pretrained(model, folder),
                     lambda model: conclave.load_state_dict_from_rank0(model, state if dist.get_rank() == 0 else None)):
            model = prepare(on_meta(AutoModelForCausalLM, plain.config), sharded)
            fill(model)
            assert model.lm_head.weight is model.model.embed_tokens.weight
            same_as(model, plain)
        model = prepare(on_meta(AutoModelForCausalLM, plain.config), sharded)
        conclave.materialize(model, seed=3)
        assert model.lm_head.weight is model.model.embed_tokens.weight


def buffers_have_their_values() -> None:
    """Of every family that has persistent ones, and rotary tables; also where init_empty_weights gave the buffers values and the parameters none."""
    for family in ("mixtral", "deepseek_v3", "minimax_m2"):
        plain = tiny_model(family)
        if family == "deepseek_v3":
            for name, buffer in plain.named_buffers():
                if "bias" in name:
                    buffer.copy_(torch.arange(float(buffer.numel())))
        state = plain.state_dict()
        for build in (lambda: on_meta(AutoModelForCausalLM, plain.config), lambda: _empty(plain.config)):  # noqa: B023
            model = prepare(build(), True)
            conclave.load_state_dict_from_rank0(model, state if dist.get_rank() == 0 else None)
            same_as(model, plain)
            model = prepare(build(), False)
            conclave.materialize(model)
            for (name, left), right in zip(model.named_buffers(), tiny_model(family).named_buffers(), strict=True):
                assert torch.equal(left, right[1]), f"{family}: {name}"


def _empty(config):
    with init_empty_weights():
        return AutoModelForCausalLM.from_config(config)


def buffers_that_nobody_computes_are_named() -> None:
    model = on_meta(AutoModelForCausalLM, tiny_config("mixtral"))
    model.model.register_buffer("table", torch.empty(4, device="meta"), persistent=False)
    prepare(model, False)
    with pytest.raises(conclave.NotMaterializedError, match="1 buffers.*model.table"):
        conclave.materialize(model)
    model = _empty(tiny_config("mixtral"))
    model.model.register_buffer("table", torch.arange(4.0), persistent=False)
    assert torch.equal(conclave.materialize(prepare(model, True)).model.table, torch.arange(4.0)), "a buffer with values keeps them"
    with pytest.raises(conclave.NotMaterializedError, match="model.embed_tokens.weight is still on the meta device"):
        prepare(on_meta(AutoModelForCausalLM, tiny_config("mixtral")), True)(batches(1, 1)[0, 0])


def heads_start_anew() -> None:
    folder, plain = shared_folder(), tiny_model("mixtral")
    base = AutoModel.from_config(plain.config)
    base.load_state_dict(plain.model.state_dict())
    if dist.get_rank() == 0:
        base.save_pretrained(folder)
    dist.barrier()
    causal = prepare(on_meta(AutoModelForCausalLM, plain.config), True)
    with pytest.warns(UserWarning, match="lm_head.weight of .*starts anew"):
        conclave.load_pretrained(causal, folder)
    for name, parameter in causal.named_parameters():
        if name != "lm_head.weight":
            assert torch.equal(whole(parameter.detach()), plain.get_parameter(name).detach()), name
    assert 0.05 < whole(causal.lm_head.weight.detach()).std() < 0.15
    state, config = plain.state_dict(), tiny_config("mixtral", num_labels=3)
    judge = prepare(on_meta(AutoModelForSequenceClassification, config), True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        conclave.load_state_dict_from_rank0(judge, state if dist.get_rank() == 0 else None)
    assert any("score.weight" in str(each.message) for each in told) == (dist.get_rank() == 0)
    assert torch.equal(whole(judge.model.embed_tokens.weight.detach()), plain.model.embed_tokens.weight.detach()) and whole(judge.score.weight).std() > 0
    causal = prepare(on_meta(AutoModelForCausalLM, plain.config), True)
    without = {name: tensor for name, tensor in state.items() if "layers.1" not in name}
    with pytest.raises(conclave.CheckpointError, match="lacks model.layers.1"):
        conclave.load_state_dict_from_rank0(causal, without if dist.get_rank() == 0 else None)


def on_ranks() -> None:
    conclave.init({"expert_parallel_degree": 2})
    tied_embeddings_stay_tied()
    buffers_have_their_values()
    buffers_that_nobody_computes_are_named()
    heads_start_anew()


def test_anything_is_materialized_or_named():
    run_torch_ranks(2, on_ranks, patience=300)

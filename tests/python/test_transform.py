"""A transformed model trains as plain Transformers does in one process.

Oracle: Transformers' own model, its own losses and experts, in one process: each step it sees every rank's batch and takes the mean of their losses, as
data-parallel trainers do. Tolerance: compared_steps.py.
"""

import functools
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from compared_steps import SEED, TOLERANCE, Steps, compare_steps, error_of, optimizer_of, whole
from tiny_models import FURTHER_SHAPES, SHAPES, batches, tiny_config, tiny_model
from torch.distributed.fsdp import fully_shard as torch_fully_shard
from torch_ranks import run_torch_ranks
from transformers import AutoModelForCausalLM

import conclave
from conclave.transformation import SUPPORTED_MODEL_TYPES


@functools.cache
def plain_training(family: str, ranks: int, steps: int, aux_loss: bool):
    """(loss by step, gradients of the first step, norms, trained model)."""
    model = tiny_model(family, output_router_logits=aux_loss)
    optimizer = optimizer_of(model.parameters())
    losses, norms, first = [], [], {}
    for step_tokens in batches(steps, ranks, seed=SEED):
        loss = torch.stack([model(input_ids=tokens, labels=tokens).loss for tokens in step_tokens]).mean()
        loss.backward()
        if not first:
            first = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, first, norms, model


def shard_by_hand(model, mesh) -> None:
    """As docs/python.md has it."""
    for layer in model.model.layers:
        torch_fully_shard(layer.mlp.experts, mesh=mesh.expert_data)
        torch_fully_shard(layer, mesh=mesh.dense_data)
    torch_fully_shard(model, mesh=mesh.dense_data)


def compare_training(family: str, degree: int, sharded: bool | str, steps: int, aux_loss: bool, shard_degree: int = 0, checkpointing: bool = False,
                     accelerated: bool = False) -> None:
    ranks = dist.get_world_size()
    what = (f"{family}, {ranks} ranks, expert degree {degree}, shard degree {shard_degree}, sharded {sharded}, checkpointing {checkpointing}, "
            f"accelerated {accelerated}, seed {SEED}")
    losses, gradients, norms, trained = plain_training(family, ranks, steps, aux_loss)
    mesh = conclave.init({"expert_parallel_degree": degree, "hybrid_shard_degree": shard_degree})
    model = conclave.transform(tiny_model(family, output_router_logits=aux_loss))
    if checkpointing:
        model.gradient_checkpointing_enable()
    if accelerated:
        conclave.accelerate(model, attention=True, rotary=True, norms=True, loss=True)
    if sharded == "by hand":
        shard_by_hand(model, mesh)
    elif sharded:
        conclave.fully_shard(model)
    compare_steps(model, Steps(losses, gradients, norms), averages_by_itself=bool(sharded), what=what, accelerated=accelerated)
    for name, parameter in model.named_parameters():
        error = error_of(whole(parameter.detach()), trained.get_parameter(name).detach())
        assert error < TOLERANCE, f"{what}: {name} differs by {error:.1e} after {steps} steps"
    load = conclave.load_metrics(model)
    assert 1.0 <= load["expert_imbalance"] <= load["expert_imbalance_max"] <= 8.0
    check_saved(model, trained, what)


def check_saved(model, trained, what: str) -> None:
    """Saved by all ranks, loaded by plain Transformers: the weights of the oracle, and what it says and writes."""
    shared = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    folder = Path(shared[0])
    conclave.save_pretrained(model, folder, max_shard_size=40_000)
    if dist.get_rank() == 0:
        loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), f"{what}: {report}"
        for name, parameter in loaded.named_parameters():
            assert error_of(parameter.detach(), trained.get_parameter(name).detach()) < TOLERANCE, f"{what}: {name} as saved"
        tokens = batches(1, 1, seed=9)[0, 0]
        with torch.no_grad():
            assert error_of(loaded(tokens).logits, trained.eval()(tokens).logits) < 10 * TOLERANCE, f"{what}: logits of the saved model"
            options = dict(max_new_tokens=5, do_sample=False, use_cache=True, output_router_logits=False)  # with them Transformers' loss fails in generate
            assert torch.equal(loaded.generate(tokens, **options), trained.generate(tokens, **options)), f"{what}: generated text"
        trained.train()
    # Back into a model on the meta device, by byte ranges, with the other kind of sharding.
    with torch.device("meta"):
        again = AutoModelForCausalLM.from_config(tiny_config(model.config.model_type))
    conclave.transform(again)
    if not any("FSDP" in type(module).__name__ for module in model.modules()):
        conclave.fully_shard(again)
    conclave.load_pretrained(again, folder)
    for (name, parameter), saved in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(whole(parameter.detach()), whole(saved.detach())), f"{what}: {name} was not read as it was saved"
    for (name, buffer), right in zip(again.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(buffer, right), f"{what}: buffer {name}"
    dist.barrier()


def on_two_ranks() -> None:
    for degree in (1, 2):
        for sharded in (False, True):
            compare_training("mixtral", degree, sharded, steps=20, aux_loss=True)
    compare_training("qwen3_moe", 2, True, steps=3, aux_loss=True)
    compare_training("olmoe", 2, False, steps=3, aux_loss=False)
    compare_training("qwen2_moe", 2, True, steps=3, aux_loss=True)
    compare_training("mixtral", 2, "by hand", steps=3, aux_loss=True)
    compare_training("mixtral", 2, True, steps=20, aux_loss=True, checkpointing=True)


def on_four_ranks() -> None:
    compare_training("mixtral", 2, True, steps=20, aux_loss=False, shard_degree=1)
    compare_training("mixtral", 2, "by hand", steps=3, aux_loss=False)


def more_on_four_ranks() -> None:
    compare_training("mixtral", 2, False, steps=20, aux_loss=False)
    compare_training("mixtral", 2, True, steps=20, aux_loss=False)
    compare_training("mixtral", 1, True, steps=20, aux_loss=False)
    compare_training("mixtral", 4, True, steps=20, aux_loss=False)
    compare_training("qwen3_moe", 2, True, steps=3, aux_loss=True)
    compare_training("olmoe", 2, True, steps=3, aux_loss=True)


def further_families() -> None:
    for family in FURTHER_SHAPES:
        compare_training(family, 2, True, steps=3, aux_loss=False)


@pytest.mark.slow
def test_further_families():
    run_torch_ranks(2, further_families)


def test_every_supported_family_is_compared():
    assert {*SHAPES, *FURTHER_SHAPES} == set(SUPPORTED_MODEL_TYPES)


@pytest.mark.parametrize(("ranks", "checks"), [(2, on_two_ranks), (4, on_four_ranks), pytest.param(4, more_on_four_ranks, marks=pytest.mark.slow)])
def test_trains_and_saves_as_plain_transformers(ranks, checks):
    run_torch_ranks(ranks, checks)

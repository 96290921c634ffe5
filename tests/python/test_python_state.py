"""State of a transformed model: distributed checkpoints at another layout, full state dictionaries from rank 0, delayed initialization."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tiny_models import batches, tiny_config, tiny_model
from torch.distributed.tensor import DTensor
from torch_ranks import run_torch_ranks
from transformers import AutoModelForCausalLM

import conclave
from conclave.regions import local_of


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def on_meta():
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config("mixtral"), attn_implementation="eager").train()


def built(degree: int, sharded: bool, model=None):
    conclave.init({"expert_parallel_degree": degree})
    model = conclave.transform(tiny_model("mixtral") if model is None else model)
    if sharded:
        conclave.fully_shard(model)
    return model, torch.optim.AdamW(conclave.parameter_groups(model), lr=1e-2, eps=1e-5)


def step(model, optimizer, number: int) -> float:
    tokens = batches(4, dist.get_world_size())[number, dist.get_rank()]
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    if not any("FSDP" in type(module).__name__ for module in model.modules()):
        conclave.synchronize_gradients(model)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def check_distributed_checkpoints() -> None:
    """Two steps, a checkpoint, two more: from the checkpoint on, every layout does the same two. Tolerance: fp32 sums in another order."""
    shared = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    folder = Path(shared[0]) / "checkpoint"
    model, optimizer = built(2, True)
    for number in (0, 1):
        step(model, optimizer, number)
    dcp.save(conclave.state_dict(model, optimizer), checkpoint_id=folder)
    losses = [step(model, optimizer, number) for number in (2, 3)]
    for degree, sharded in ((4, True), (1, True), (2, False), (1, False)):
        other, fresh = built(degree, sharded)
        state = conclave.state_dict(other, fresh)
        dcp.load(state, checkpoint_id=folder)
        conclave.load_state_dict(other, state, fresh)
        again = [step(other, fresh, number) for number in (2, 3)]
        for left, right in zip(again, losses, strict=True):
            assert abs(left - right) < 1e-5 * abs(right), f"degree {degree}, sharded {sharded}: {again} instead of {losses}"
        for (name, value), right in zip(other.named_parameters(), model.parameters(), strict=True):
            error = (whole(value) - whole(right)).abs().max() / whole(right).abs().max()
            assert error < 1e-5, f"degree {degree}, sharded {sharded}: {name} differs by {error:.1e}"


def check_full_state_from_rank0() -> None:
    plain = tiny_model("mixtral", seed=3)
    for degree, sharded, start in ((2, True, on_meta()), (4, False, on_meta()), (1, True, tiny_model("mixtral", seed=4))):
        model, _ = built(degree, sharded, start)
        conclave.load_state_dict_from_rank0(model, plain.state_dict() if dist.get_rank() == 0 else None)
        for name, value in model.named_parameters():
            assert torch.equal(whole(value), plain.get_parameter(name)), name
        for (name, buffer), right in zip(model.named_buffers(), plain.buffers(), strict=True):
            assert torch.equal(buffer, right), name


def check_delayed_initialization() -> None:
    """Weights are the same whatever the layout, of the width the model asks for, and no rank holds more than its parts."""
    first = None
    for degree, sharded in ((1, False), (2, True), (4, True), (2, False)):
        model, _ = built(degree, sharded, on_meta())
        conclave.materialize(model, seed=7)
        weights = {name: whole(value) for name, value in model.named_parameters()}
        first = first or weights
        for name, value in weights.items():
            assert torch.equal(value, first[name]), f"degree {degree}, sharded {sharded}: {name}"
        experts = model.model.layers[0].mlp.experts.gate_up_proj
        assert local_of(experts).numel() == experts.numel() // (4 if sharded else degree)
    for name, value in first.items():
        if "norm" in name:
            assert (value == 1).all(), name
        else:
            # 0.02: the default initializer_range. The deviation of n samples lies within 4 / sqrt(2 n) of it, relatively, all but certainly.
            assert abs(value.std().item() / 0.02 - 1) < 4 / (2 * value.numel()) ** 0.5 + 0.01, name


def on_four_ranks() -> None:
    check_distributed_checkpoints()
    check_full_state_from_rank0()
    check_delayed_initialization()


def test_on_four_ranks():
    run_torch_ranks(4, on_four_ranks)

"""Activation offloading in scripts: the same bits, and the kept activations are not in the process.

Oracle: the same model without offloading, bit for bit. Resident memory is what the kernel says of the process (VmRSS less what files have mapped).
"""

import copy
import ctypes
import gc

import pytest
import torch
import torch.distributed as dist
from compared_steps import whole
from tiny_models import batches, tiny_model
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, apply_activation_checkpointing, checkpoint_wrapper
from torch_ranks import run_torch_ranks
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

import conclave
from conclave import offloading

LENGTH = 256  # tokens, so that a layer's input of 32 values is above the least bytes


def gradients_of(model: nn.Module, tokens: torch.Tensor, passes: int = 1) -> list[torch.Tensor]:
    model.zero_grad()
    losses = [model(input_ids=tokens + number, labels=tokens).loss for number in range(passes)]
    for loss in losses:  # first in, first out: not the order in which what is kept would be needed soonest
        loss.backward()
    return [*(loss.detach() for loss in losses), *(whole(parameter.grad).clone() for parameter in model.parameters())]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def big(**changes) -> nn.Module:
    return tiny_model("mixtral", num_hidden_layers=5, max_position_embeddings=LENGTH, **changes)


def same_bits() -> None:
    tokens = batches(1, dist.get_world_size(), sequences=1, length=LENGTH, vocabulary=60)[0, dist.get_rank()]
    for degree, sharded, checkpointing, horizons in ((dist.get_world_size(), True, True, (None, 1, 2)), (dist.get_world_size(), True, False, (None, 2)),
                                                     (1, False, True, (None, 9)), (1, True, True, (None, 2))):
        seen = []
        for horizon in horizons:
            conclave.init({"expert_parallel_degree": degree})
            model = conclave.transform(big())
            if checkpointing:
                model.gradient_checkpointing_enable()
            if horizon == 1:
                conclave.offload_activations(model, horizon)
            if sharded:
                conclave.fully_shard(model)
            if horizon in (2, 9):  # after fully_shard, too
                conclave.offload_activations(model, horizon)
            seen.append([gradients_of(model, tokens, passes) for passes in (1, 2)])
        for horizon, found in zip(horizons[1:], seen[1:], strict=True):
            what = f"degree {degree}, sharded {sharded}, checkpointing {checkpointing}, horizon {horizon}"
            assert all(same(own, plain) for own, plain in zip(found, seen[0], strict=True)), what


def by_dictionary() -> None:
    """SMP's keys: what gradient_checkpointing_enable keeps is offloaded."""
    tokens = batches(1, 1, sequences=1, length=LENGTH, vocabulary=60)[0, 0]
    seen, slots = [], []
    for offloads in (False, True):
        conclave.init({"sm_activation_offloading": offloads, "activation_loading_horizon": 1})
        model = conclave.transform(big())
        assert not any(isinstance(module, offloading.OffloadedLayer) for module in model.modules())
        model.gradient_checkpointing_enable()
        seen.append(gradients_of(model, tokens))
        slots += [layer.conclave_offloading[0]._free for layer in model.model.layers if offloads]
    assert same(*seen) and sum(len(free) for free in slots[0].values()) == 4, "all layers but the last left the device, and gave their places back"


def without_a_process_group() -> None:
    """Any module: PyTorch's checkpoint_wrapper, a plain model's layers, children, parts of one's own; a graph that is kept; a copy."""
    tokens = batches(1, 1, sequences=1, length=LENGTH, vocabulary=60)[0, 0]
    plain = gradients_of(big(), tokens)
    wrapped = big()
    apply_activation_checkpointing(wrapped, check_fn=lambda module: isinstance(module, MixtralDecoderLayer),
                                   checkpoint_wrapper_fn=lambda module: checkpoint_wrapper(module, checkpoint_impl=CheckpointImpl.NO_REENTRANT))
    for model in (conclave.offload_activations(big()), conclave.offload_activations(wrapped), copy.deepcopy(conclave.offload_activations(big()))):
        assert same(gradients_of(model, tokens), plain)
    with pytest.raises(conclave.OrderError, match="once"):
        conclave.offload_activations(model)
    with pytest.raises(conclave.ConfigError, match="horizon is 0"):
        conclave.offload_activations(big(), 0)
    with pytest.raises(conclave.ConfigError, match="/proc/nowhere"):
        conclave.offload_activations(big(), folder="/proc/nowhere")
    with pytest.raises(conclave.UnsupportedError, match="no layers"):
        conclave.offload_activations(nn.Linear(2, 2))

    torch.manual_seed(3)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(4))
    start = torch.randn(LENGTH, 64)
    found = []
    for horizon in (None, 1, 3):
        parts = conclave.ActivationOffloading(horizon) if horizon else None
        hidden = start.clone().requires_grad_()
        first = hidden
        for block in blocks:
            if parts is None:
                hidden = hidden + block(hidden)
            else:
                with parts.layer(block):
                    hidden = hidden + block(hidden)
        loss = hidden.square().mean()
        twice = [torch.autograd.grad(loss, [first, *blocks.parameters()], retain_graph=again) for again in (True, False)]
        assert same(*twice)
        found.append(list(twice[0]))
    assert same(found[0], found[1]) and same(found[0], found[2])


def resident_bytes() -> int:
    """Memory of the process that no file has: what is offloaded to scratch files is the kernel's to keep or to write."""
    gc.collect()
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["RssAnon"].split()[0]) * 1024


def kept_bytes(offloads: bool, layers: int, length: int, hidden: int) -> int:
    """What a forward pass leaves in the process until backward."""
    model = tiny_model("mixtral", num_hidden_layers=layers, hidden_size=hidden, intermediate_size=16, num_local_experts=2, head_dim=8,
                       max_position_embeddings=length)
    conclave.init({})
    conclave.transform(model).gradient_checkpointing_enable()
    if offloads:
        conclave.offload_activations(model, 2)
    tokens = batches(1, 1, sequences=1, length=length)[0, 0]
    for _ in range(2):  # the first pass warms up
        gc.collect()
        before = resident_bytes()
        hidden_states = model.model(input_ids=tokens).last_hidden_state
        kept = resident_bytes() - before
        hidden_states.sum().backward()
    return kept


def memory_leaves() -> None:
    # Freed blocks of this size go back to the system at once: what an allocator keeps for later would hide what a pass keeps.
    m_mmap_threshold = -3  # mallopt(3)
    assert ctypes.CDLL(None).mallopt(m_mmap_threshold, 1 << 18) == 1
    layers, length, hidden = 12, 512, 1024
    own = length * hidden * 4
    kept, offloaded = (kept_bytes(offloads, layers, length, hidden) for offloads in (False, True))
    assert kept - offloaded > (layers - 2) * own * 0.8, f"{kept / own:.1f} inputs are kept, {offloaded / own:.1f} with offloading"


def on_one_rank() -> None:
    by_dictionary()
    memory_leaves()


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_same_bits_come_back(ranks):
    run_torch_ranks(ranks, same_bits)


def test_any_module():
    run_torch_ranks(1, without_a_process_group, initialize=False)


def test_kept_activations_leave_the_process():
    run_torch_ranks(1, on_one_rank)

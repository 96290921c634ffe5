"""What scripts call by habit: on a transformed model it works as on a plain one, or is refused with the remedy, on every rank.

Oracle: plain Transformers with PyTorch's own function, in one process. Tolerance: fp32 sums in another order, 1e-5.
"""

import functools
import math

import pytest
import torch
import torch.distributed as dist
import transformers
from accelerate import init_empty_weights
from compared_steps import error_of, whole
from test_transform import plain_training
from tiny_models import batches, tiny_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, apply_activation_checkpointing, checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint
from torch_ranks import run_torch_ranks

import conclave


def transformed(sharded: bool = False, **changes):
    model = conclave.transform(tiny_model("mixtral", **changes))
    return conclave.fully_shard(model) if sharded else model


def backward(model, sharded: bool = False):
    tokens = batches(1, dist.get_world_size())[0, dist.get_rank()]
    model(input_ids=tokens, labels=tokens).loss.backward()
    if not sharded:
        conclave.synchronize_gradients(model)
    return model


def check_norms(sharded: bool) -> None:
    """conclave's, PyTorch's and the model's own clip_grad_norm_, for every kind of norm."""
    _, gradients, _, _ = plain_training("mixtral", dist.get_world_size(), 1, False)
    for norm_type in (1.0, 2.0, 3.0, math.inf):
        right = torch.nn.utils.get_total_norm(list(gradients.values()), norm_type).item()
        for clip in (conclave.clip_grad_norm_, lambda model, *options: clip_grad_norm_(model.parameters(), *options),
                     lambda model, *options: model.clip_grad_norm_(*options)):
            model = backward(transformed(sharded), sharded)
            norm = clip(model, right / 2, norm_type)
            assert norm.item() == pytest.approx(right, rel=1e-5), f"sharded {sharded}, norm {norm_type}"
            for name, parameter in model.named_parameters():
                assert error_of(whole(parameter.grad), gradients[name] / 2) < 1e-5, f"sharded {sharded}, norm {norm_type}: {name}"
    for wrong in (0, -1, math.nan):
        with pytest.raises(conclave.ConfigError, match="norm_type"):
            conclave.clip_grad_norm_(model, 1.0, wrong)


def check_optimizers(degree: int) -> None:
    """At degree 1 nothing of an unsharded model is divided, so that every optimizer takes it."""
    for build in (functools.partial(torch.optim.AdamW, lr=1e-2, eps=1e-5, fused=True), functools.partial(torch.optim.AdamW, lr=1e-2, eps=1e-5, foreach=True),
                  functools.partial(transformers.Adafactor, lr=1e-2, relative_step=False, scale_parameter=False), torch.optim.Adafactor):
        if degree > 1:
            with pytest.raises(conclave.UnsupportedError, match="conclave.parameter_groups"):
                build(backward(transformed()).parameters()).step()
            continue
        right, model = tiny_model("mixtral"), backward(transformed())
        for parameter, own in zip(right.parameters(), model.parameters(), strict=True):
            parameter.grad = own.grad.clone()
        for each in (right, model):
            build(each.parameters()).step()
        for name, parameter in model.named_parameters():
            assert error_of(parameter.detach(), right.get_parameter(name).detach()) < 1e-6, f"{build}: {name}"


def check_wrappers(degree: int) -> None:
    own = conclave.nn.MoE(8, 8, 4, 2)
    for build in (DistributedDataParallel, functools.partial(FullyShardedDataParallel, device_id=torch.device("cpu"))):
        for model in (transformed(), own) if degree > 1 else ():
            with pytest.raises(conclave.OrderError, match="conclave.fully_shard"):
                build(model)
    if degree == 1:
        _, gradients, _, _ = plain_training("mixtral", dist.get_world_size(), 1, False)
        model = transformed()
        tokens = batches(1, dist.get_world_size())[0, dist.get_rank()]
        wrapped = DistributedDataParallel(model)
        wrapped(input_ids=tokens, labels=tokens).loss.backward()
        assert all(error_of(parameter.grad, gradients[name]) < 1e-5 for name, parameter in model.named_parameters())
        return
    model = transformed()
    for part in (model, model.model.layers[0], model.model.layers[1].mlp.experts):
        with pytest.raises(conclave.OrderError, match="mesh.expert_data"):
            fully_shard(part)
    fully_shard(tiny_model("mixtral"))  # no experts are divided
    with pytest.raises(conclave.UnsupportedError, match="as if they were all"):
        transformed().set_experts_implementation("eager")
    with pytest.raises(conclave.UnsupportedError, match="as if they were all"):
        transformed().set_experts_implementation({"": "grouped_mm"})
    transformed().set_experts_implementation("conclave")


def check_empty_weights(sharded: bool) -> None:
    """accelerate's init_empty_weights around everything, and a forgotten materialize."""
    with init_empty_weights():
        model = transformed(sharded)
    tokens = batches(1, 2)[0, 0]
    with pytest.raises(conclave.NotMaterializedError, match="conclave.materialize"):
        model(input_ids=tokens)
    with pytest.raises(conclave.NotMaterializedError, match="conclave.materialize"):
        model.generate(tokens)
    conclave.materialize(model, seed=1)
    backward(model, sharded)


def check_checkpointing() -> None:
    """Reentrant checkpointing is noticed wherever it comes from; the other kind keeps every gradient."""
    layer = type(tiny_model("mixtral").model.layers[0])
    for implementation in (CheckpointImpl.NO_REENTRANT, CheckpointImpl.REENTRANT):
        model = transformed(output_router_logits=True)
        apply_activation_checkpointing(model, functools.partial(checkpoint_wrapper, checkpoint_impl=implementation), lambda module: isinstance(module, layer))
        if implementation is CheckpointImpl.REENTRANT:
            with pytest.raises(conclave.UnsupportedError, match="NO_REENTRANT"):
                backward(model)
            continue
        _, gradients, _, _ = plain_training("mixtral", dist.get_world_size(), 1, True)
        for name, parameter in backward(model).named_parameters():
            assert error_of(whole(parameter.grad), gradients[name.replace("_checkpoint_wrapped_module.", "")]) < 1e-5, name
        assert conclave.load_metrics(model)["expert_imbalance"] >= 1
    moe = conclave.nn.MoE(8, 8, 4, 2)
    with pytest.raises(conclave.UnsupportedError, match="NO_REENTRANT"):
        checkpoint(lambda hidden: moe(hidden)[0], torch.ones(3, 8, requires_grad=True), use_reentrant=True).sum().backward()


def check_load() -> None:
    """Only what is trained on is counted: not evaluation, with gradients or without."""
    model = transformed()
    tokens = batches(1, 2)[0, dist.get_rank()]
    model.eval()
    model(input_ids=tokens)
    with torch.no_grad():
        model(input_ids=tokens)
        model.train()(input_ids=tokens)
    assert conclave.load_metrics(model) == {"expert_imbalance": 0.0, "expert_imbalance_max": 0.0, "dead_experts": 16}
    model(input_ids=tokens)
    assert conclave.load_metrics(model)["expert_imbalance"] >= 1


def on_two_ranks() -> None:
    for degree in (2, 1):
        conclave.init({"expert_parallel_degree": degree})
        for sharded in (False, True):
            check_norms(sharded)
            check_empty_weights(sharded)
        check_optimizers(degree)
        check_wrappers(degree)
        check_checkpointing()
        check_load()


def test_calls_of_pytorch():
    run_torch_ranks(2, on_two_ranks)

"""A script of SMP's shape (examples/python/from_smp.py) trains as plain Transformers does, resumes at other degrees, fine-tunes rank 0's weights.

Oracle: plain Transformers in one process with the batches of all ranks together; sinkhorn's choices by a plain iteration, losses by plain PyTorch.
Tolerance: 1e-5, fp32 sums in another order.
"""

import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from compared_steps import error_of
from ranks import free_port
from test_balancing import aux_loss_of
from test_moe_operators import even_choice
from tiny_models import batches, tiny_model
from torch_ranks import run_torch_ranks
from transformers import AutoModelForCausalLM

import conclave

FOLDER = Path(__file__).resolve().parents[2] / "examples/python"
TOLERANCE = 1e-5
EXPERTS, TOP_K, STEPS, SEED = 8, 2, 4, 11


def text() -> torch.Tensor:
    return torch.randint(0, 64, (5000,), generator=torch.Generator().manual_seed(SEED))


def plain_training(folder: Path, ranks: int, rule: str, steps: int, coefficient: float, z_coefficient: float):
    """(losses, norms, trained model)."""
    from text import batch_of

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").train()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95), eps=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=3e-4)
    seen = []

    def route(gate, inputs, output):
        logits, weight, choice = output
        if rule == "sinkhorn":
            choice = even_choice(logits.detach(), TOP_K)
        chosen = logits.softmax(-1).gather(1, choice)
        seen.append((logits, choice))
        return logits, chosen / chosen.sum(-1, keepdim=True), choice

    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(route)
    losses, norms = [], []
    for step in range(steps):
        seen.clear()
        tokens = torch.cat([batch_of(text(), step, rank, ranks, sequences=2, length=64) for rank in range(ranks)])
        loss = model(input_ids=tokens, labels=tokens).loss
        if rule == "aux_loss":  # each rank's own, averaged, as with Transformers on each rank
            rows = len(seen[0][0]) // ranks
            own = [aux_loss_of([logits[rank * rows : (rank + 1) * rows] for logits, _ in seen], [choice[rank * rows : (rank + 1) * rows] for _, choice in seen],
                               False) for rank in range(ranks)]
            loss = loss + coefficient * torch.stack(own).mean()
        loss = loss + z_coefficient * torch.cat([logits for logits, _ in seen]).logsumexp(-1).square().mean()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms, model


def train(folder: Path, ports: list[int], *words: str):
    import from_smp

    os.environ["MASTER_PORT"] = str(ports.pop())
    with torch.random.fork_rng():
        return from_smp.main(["--checkpoint-dir", str(folder), "--checkpoint-freq", "2", *words], text(), tiny_model("mixtral").config)


def on_ranks(folder: str, ports: list[int]) -> None:
    sys.path.insert(0, str(FOLDER))
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    start = Path(folder) / "start"
    if rank == 0:
        tiny_model("mixtral").save_pretrained(start)
    degrees = ["--expert-parallel-degree", "2", "--hybrid-shard-degree", str(ranks // 4 or 1)]
    for rule, words in (("sinkhorn", []), ("aux_loss", ["--moe-load-balancing", "aux_loss", "--moe-aux-loss-coeff", "0.5", "--global-token-shuffle", "1",
                                                        "--moe-all-to-all-dispatcher", "0"])):
        output = Path(folder) / rule
        log = train(output, ports, "--pretrained", str(start), "--steps", str(STEPS), *degrees, *words)
        losses, norms, trained = plain_training(start, ranks, rule, STEPS, 0.5, 0.001)
        assert [loss for loss, _ in log] == pytest.approx(losses, rel=TOLERANCE), rule
        assert [norm for _, norm in log] == pytest.approx(norms, rel=TOLERANCE), rule
        saved = AutoModelForCausalLM.from_pretrained(output / "model")
        for name, parameter in saved.named_parameters():
            assert error_of(parameter.detach(), trained.get_parameter(name).detach()) < TOLERANCE, f"{rule}: {name}"
    # On from the second step, at another layout.
    for name in (f"mixtral-{step}steps" for step in range(4, STEPS + 1, 2)):
        if rank == 0:
            (Path(folder) / "sinkhorn" / name).rename(Path(folder) / name)
    again = train(Path(folder) / "sinkhorn", ports, "--resume", "--steps", str(STEPS), "--expert-parallel-degree", "1")
    losses, norms, _ = plain_training(start, ranks, "sinkhorn", STEPS, 0.5, 0.001)
    assert [loss for loss, _ in again] == pytest.approx(losses[2:], rel=TOLERANCE)
    # From nothing: the same weights at every layout.
    first = [train(Path(folder) / f"new-{degree}", ports, "--steps", "1", "--expert-parallel-degree", str(degree))[0] for degree in (1, 2)]
    assert first[0] == pytest.approx(first[1], rel=TOLERANCE)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_script_of_smp_trains_as_plain_transformers(ranks):
    with tempfile.TemporaryDirectory() as folder:
        run_torch_ranks(ranks, on_ranks, folder, [free_port() for _ in range(6)], initialize=False, patience=200)


def refusals() -> None:
    """By name, on all ranks."""
    import conclave.smp as tsm
    from torch.distributed.fsdp import MixedPrecision, ShardingStrategy, StateDictType
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

    rank = dist.get_rank()
    with pytest.raises(conclave.ProcessGroupError, match="conclave.init was not called"):
        tsm.transform(tiny_model("mixtral"))
    for config, text in (({"smdistributed": {"modelparallel": {"enabled": True, "parameters": {"expert_parallel_degree": 2}, "x": 1}}}, "x stands beside"),
                         ({"fsdp_cache_flush_warnings": "yes"}, "fsdp_cache_flush_warnings is 'yes'"), ({"tensor_parallel_degree": 2}, "tensor_parallel_degree"),
                         ({"context_parallel_degree": 2}, "context_parallel_degree")):
        with pytest.raises(conclave.ConfigError, match=text):
            tsm.init(config if rank == 1 else {"expert_parallel_degree": 1})
    os.environ["SM_HP_MP_PARAMETERS"] = '{"expert_parallel_degree": 2, "sm_activation_offloading": true, "activation_loading_horizon": 3}'
    tsm.init()
    del os.environ["SM_HP_MP_PARAMETERS"]
    assert (tsm.state.expert_parallel_degree, tsm.state.hybrid_shard_degree, tsm.state.activation_loading_horizon) == (2, 1, 3)
    assert tsm.state.sm_activation_offloading and tsm.state.ep_rank == rank and tsm.state.ranker.get_rep_rank(1) == 0
    with pytest.raises(conclave.UnsupportedError, match="tsm.state.pp_rank is not known"):
        tsm.state.pp_rank  # noqa: B018
    for options, error, text in (({"cp_comm_type": "ring"}, conclave.ConfigError, "cp_comm_type"), ({"device": "cuda"}, conclave.ConfigError, "device is cuda"),
                                 ({"config": {"moe_load_balencing": "none"}}, conclave.ConfigError, "Did you mean moe_load_balancing"),
                                 ({"config": 5}, conclave.ConfigError, "dictionary of its fields")):
        with pytest.raises(error, match=text):
            tsm.transform(tiny_model("mixtral"), **(options if rank == 1 else {}))
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(tiny_model("mixtral").config)
    with pytest.raises(conclave.OrderError, match="rank 0 has parameters on the meta device"):
        tsm.transform(empty, load_state_dict_from_rank0=True)
    model = tsm.transform(tiny_model("mixtral"), config={"moe_load_balancing": "none"})
    for options, error, text in (({"process_group": dist.group.WORLD}, conclave.UnsupportedError, "process_group"),
                                 ({"sharding_strategy": ShardingStrategy.NO_SHARD}, conclave.ConfigError, "NO_SHARD"),
                                 ({"auto_wrap_policy": size_based_auto_wrap_policy}, conclave.UnsupportedError, "decoder layer"),
                                 ({"mixed_precision": MixedPrecision(keep_low_precision_grads=True)}, conclave.UnsupportedError, "keep_low_precision_grads"),
                                 ({"param_init_fn": print}, conclave.UnsupportedError, "DelayedParamIniter"),
                                 ({"ignored_modules": [model.lm_head]}, conclave.UnsupportedError, "ignored_modules")):
        with pytest.raises(error, match=text):
            tsm.FullyShardedDataParallel(model, **(options if rank == 1 else {}))
    with pytest.raises(conclave.UnsupportedError, match="FULL_STATE_DICT"):
        tsm.FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT)
    with pytest.raises(conclave.UnsupportedError, match="init_method_using_config"):
        tsm.DelayedParamIniter(model, init_method_using_config=print)
    with pytest.raises(conclave.CheckpointError, match="no .metadata"):
        tsm.checkpoint.load(model, None, "/nowhere" if rank == 1 else Path.cwd())
    with pytest.raises(conclave.NotMaterializedError, match="still on the meta device"), tsm.DelayedParamIniter(empty).validate_params_and_buffers_inited():
        pass


def a_dictionary_of_the_script() -> None:
    """The state dictionary that SMP's page puts together, by its own calls; a dictionary as MoEConfig."""
    import conclave.smp as tsm
    from conclave.smp.distributed.checkpoint.state_dict_loader import load
    from conclave.smp.distributed.checkpoint.state_dict_saver import async_save, maybe_finalize_async_calls

    shared = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    losses = []
    tokens = batches(1, 2, seed=SEED)[0, dist.get_rank()]
    for degree in (2, 1):
        tsm.init({"expert_parallel_degree": degree})
        with tsm.delayed_param_initialization():
            model = AutoModelForCausalLM.from_config(tiny_model("mixtral").config, attn_implementation="eager")
        model = tsm.transform(model, config=tsm.MoEConfig(moe_load_balancing="aux_loss", moe_z_loss_coeff=0.0))
        model = tsm.FullyShardedDataParallel(model, param_init_fn=tsm.DelayedParamIniter(model).get_param_init_fn())
        state = {"model": model.state_dict(), "epoch": 0}
        if degree == 2:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.1)
            async_save({**state, "epoch": 7}, checkpoint_id=shared[0], coordinator_rank=0)
            maybe_finalize_async_calls(blocking=True)
        else:
            load(state, checkpoint_id=shared[0])
            model.load_state_dict(state["model"])
            assert state["epoch"] == 7
        losses.append(model(input_ids=tokens, labels=tokens).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=TOLERANCE)


def on_two_ranks() -> None:
    refusals()
    a_dictionary_of_the_script()


def test_what_cannot_be_honoured_is_refused_by_name():
    run_torch_ranks(2, on_two_ranks, patience=300)

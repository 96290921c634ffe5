"""Balancing rules of scripts: the same numbers as one process that has all ranks' tokens in one batch.

Oracle: plain Transformers in one process on the batches of all ranks together, with losses computed in plain PyTorch from its own router logits, and
routers whose choices a plain rule in numpy or PyTorch makes. Tolerance: 1e-5 of the largest value, fp32 sums in another order.
"""

import functools

import pytest
import torch
import torch.distributed as dist
from compared_steps import SEED, TOLERANCE, Steps, compare_steps, optimizer_of
from tiny_models import batches, tiny_model
from torch_ranks import run_torch_ranks

import conclave
from conclave.selection_bias import SELECTION_BIAS

STEPS = 3
EXPERTS, TOP_K = 8, 2


def aux_loss_of(logits: list[torch.Tensor], choices: list[torch.Tensor], each: bool) -> torch.Tensor:
    """Fedus et al. (2022), equations 4 to 6, over all layers together or of each."""
    if each:
        return torch.stack([aux_loss_of([layer], [choice], False) for layer, choice in zip(logits, choices, strict=True)]).mean()
    probability, choice = torch.cat(logits).softmax(-1), torch.cat(choices)
    count = torch.nn.functional.one_hot(choice, EXPERTS).sum((0, 1)).double() / len(choice)
    return EXPERTS * (count.to(probability.dtype) * probability.mean(0)).sum()


def plain_choice(rule: dict, scores: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(choices, which of them are dispatched) of scores [T,E]."""
    balancing = rule.get("moe_load_balancing")
    if balancing == "balanced":
        choice = (torch.arange(len(scores))[:, None] * TOP_K + torch.arange(TOP_K)) % EXPERTS
    else:
        choice = (scores + bias if balancing == "bias" else scores).topk(TOP_K).indices
    kept = torch.ones_like(choice, dtype=torch.bool)
    if factor := rule.get("capacity_factor"):
        most = -int(-factor * len(scores) * TOP_K // EXPERTS)
        for expert in range(EXPERTS):
            at = (choice == expert).nonzero().tolist()
            if rule.get("drop_policy") != "position":
                at.sort(key=lambda place: -scores[place[0], expert].item())
            for token, number in at[most:]:
                kept[token, number] = False
    return choice, kept


@functools.cache
def plain_training(family: str, ranks: int, rule: tuple):
    """(losses, gradients of the first step, norms, biases) with all tokens in one batch."""
    given = dict(rule)
    model = tiny_model(family)
    optimizer = optimizer_of(model.parameters())
    gates = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    biases = [torch.zeros(EXPERTS) for _ in gates]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def choose(number: int):
        def hook(gate, inputs, output):
            logits, weight, choice = output
            with torch.no_grad():
                choice, kept = plain_choice(given, logits.softmax(-1), biases[number])
            chosen = logits.softmax(-1).gather(1, choice)
            if getattr(gate, "norm_topk_prob", True):
                chosen = chosen / chosen.sum(-1, keepdim=True)
            seen.append((logits, choice))
            return logits, chosen * kept, choice
        return hook

    for number, gate in enumerate(gates):
        gate.register_forward_hook(choose(number))
    losses, norms, first = [], [], {}
    for tokens in batches(STEPS, ranks, seed=SEED):
        seen.clear()
        tokens = tokens.flatten(0, 1)
        loss = model(input_ids=tokens, labels=tokens).loss
        logits, choices = [logits for logits, _ in seen], [choice for _, choice in seen]
        if given.get("moe_load_balancing") == "aux_loss":
            loss = loss + given["moe_aux_loss_coeff"] * aux_loss_of(logits, choices, given.get("aux_loss_layers") == "each")
        loss = loss + given.get("moe_z_loss_coeff", 0.0) * torch.cat(logits).logsumexp(-1).square().mean()
        loss.backward()
        first = first or {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        for bias, choice in zip(biases, choices, strict=True):
            count = torch.bincount(choice.flatten(), minlength=EXPERTS).float()
            bias += given.get("bias_update_rate", 0.0) * (count.mean() - count).sign()
    return losses, first, norms, biases


def compare(rule: dict, family: str = "mixtral", degree: int = 2, sharded: bool = True, checkpointing: bool = True) -> dict:
    ranks = dist.get_world_size()
    what = f"{rule}, {family}, {ranks} ranks, degree {degree}, sharded {sharded}, checkpointing {checkpointing}, seed {SEED}"
    losses, gradients, norms, biases = plain_training(family, ranks, tuple(sorted(rule.items())))
    conclave.init({"expert_parallel_degree": degree})
    model = conclave.transform(tiny_model(family), conclave.MoEConfig(**rule))
    if checkpointing:
        model.gradient_checkpointing_enable()
    if sharded:
        conclave.fully_shard(model)
    compare_steps(model, Steps(losses, gradients, norms), averages_by_itself=sharded, what=what)
    if rule.get("moe_load_balancing") == "bias":
        found = [buffer for name, buffer in model.named_buffers() if name.endswith(SELECTION_BIAS)]
        assert all(torch.equal(left, right) for left, right in zip(found, biases, strict=True)), f"{what}: {found} is not {biases}"
    return conclave.load_metrics(model)


def on_ranks() -> None:
    degree = min(dist.get_world_size(), 2)
    for rule in ({"moe_load_balancing": "aux_loss", "moe_aux_loss_coeff": 0.5, "aux_loss_scope": "all_ranks"},
                 {"moe_load_balancing": "aux_loss", "moe_aux_loss_coeff": 0.5, "aux_loss_scope": "all_ranks", "aux_loss_layers": "each",
                  "moe_z_loss_coeff": 0.1, "moe_all_to_all_dispatcher": False},
                 {"moe_load_balancing": "bias", "bias_update_rate": 0.01, "moe_z_loss_coeff": 0.1, "global_token_shuffle": True},
                 {"moe_load_balancing": "balanced", "global_token_shuffle": True, "dispatch_chunks": 2},
                 {"moe_load_balancing": "none", "capacity_factor": 1.0},
                 {"moe_load_balancing": "none", "capacity_factor": 0.75, "drop_policy": "position", "dispatcher": "all_gather"}):
        load = compare(rule, degree=degree)
        assert ("drop_rate" in load and load["drop_rate"] > 0) == ("capacity_factor" in rule)
        assert load["expert_imbalance"] == pytest.approx(1.0) if rule["moe_load_balancing"] == "balanced" else load["expert_imbalance"] > 1
    compare({"moe_load_balancing": "aux_loss", "moe_aux_loss_coeff": 0.5, "aux_loss_scope": "all_ranks", "moe_z_loss_coeff": 0.1}, "olmoe", degree=1,
            sharded=False, checkpointing=False)
    compare({"moe_load_balancing": "bias", "bias_update_rate": 0.01}, "qwen3_moe", sharded=False, degree=degree)
    compare({"moe_load_balancing": "bias", "bias_update_rate": 0.01, "capacity_factor": 1.0}, "qwen2_moe", degree=degree)
    check_padding()
    check_load_metrics()
    check_evaluation()


def check_padding() -> None:
    """Padded tokens do not count, and ranks may have different numbers of them. Oracle: Transformers' own loss with its mask, on one batch of all."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    tokens = batches(1, ranks, seed=7)[0]
    mask = torch.ones_like(tokens)
    for each in range(ranks):
        mask[each, 0, 5 + each :] = 0
    conclave.init({"expert_parallel_degree": 1})
    own = conclave.transform(tiny_model("mixtral"), conclave.MoEConfig(moe_load_balancing="aux_loss", aux_loss_scope="all_ranks"))
    found = own(input_ids=tokens[rank], attention_mask=mask[rank]).aux_loss
    plain = tiny_model("mixtral", output_router_logits=True)
    assert found.item() == pytest.approx(plain(input_ids=tokens.flatten(0, 1), attention_mask=mask.flatten(0, 1)).aux_loss.item(), rel=TOLERANCE)


def check_load_metrics() -> None:
    """By the names and formulas of metrics.jsonl. Oracle: plain PyTorch on the router logits that Transformers gives out of one batch of all ranks."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    tokens = batches(1, ranks, seed=8)[0]
    conclave.init({"expert_parallel_degree": min(ranks, 2)})
    model = conclave.transform(tiny_model("mixtral"), conclave.MoEConfig(moe_load_balancing="none"))
    model(input_ids=tokens[rank])
    load = conclave.load_metrics(model)
    logits = tiny_model("mixtral")(input_ids=tokens.flatten(0, 1), output_router_logits=True).router_logits
    counts = torch.stack([torch.bincount(layer.topk(TOP_K).indices.flatten(), minlength=EXPERTS) for layer in logits]).double()
    share = counts / counts.sum(1, keepdim=True)
    right = {"expert_imbalance_by_layer": counts.amax(1) / counts.mean(1), "expert_share_by_layer": share, "expert_share": counts.sum(0) / counts.sum(),
             "load_entropy_by_layer": -(share * share.clamp_min(1e-30).log()).sum(1) / torch.log(torch.tensor(float(EXPERTS))),
             "router_confidence_by_layer": torch.stack([layer.softmax(-1).amax(-1).mean() for layer in logits]),
             "z_loss_by_layer": torch.stack([layer.logsumexp(-1).square().mean() for layer in logits]),
             "aux_loss_by_layer": torch.stack([aux_loss_of([layer], [layer.topk(TOP_K).indices], False) for layer in logits])}
    for name, value in right.items():
        assert torch.tensor(load[name]).numpy() == pytest.approx(value.detach().numpy(), rel=TOLERANCE), name
    assert load["load_entropy"] == pytest.approx(right["load_entropy_by_layer"].mean().item(), rel=TOLERANCE)
    assert load["dead_experts"] == int((counts == 0).sum())
    model = conclave.transform(tiny_model("qwen3_moe"), conclave.MoEConfig())  # of three layers the first is dense
    model(input_ids=tokens[rank])
    load = conclave.load_metrics(model)
    for name in ("expert_imbalance_by_layer", "expert_share_by_layer", "aux_loss_by_layer", "dead_experts_by_layer"):
        assert [value is None for value in load[name]] == [True, False, False], name


def check_evaluation() -> None:
    """Nothing is added, and ranks do not wait for each other."""
    conclave.init({"expert_parallel_degree": 1})
    model = conclave.transform(tiny_model("mixtral"), conclave.MoEConfig(moe_load_balancing="sinkhorn", moe_z_loss_coeff=0.5, capacity_factor=0.5)).eval()
    tokens = batches(1, 1, seed=9)[0, 0]
    with torch.no_grad():
        for _ in range(1 + dist.get_rank()):
            assert model(input_ids=tokens, labels=tokens).loss.item() == pytest.approx(tiny_model("mixtral").eval()(tokens, labels=tokens).loss.item(), rel=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_rules_equal_one_process_with_all_tokens(ranks):
    run_torch_ranks(ranks, on_ranks)

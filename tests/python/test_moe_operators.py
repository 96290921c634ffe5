"""The routed experts of a layer as an operator of PyTorch, with its gradients.

Oracle: every expert in a plain loop over all ranks' tokens under PyTorch's own autograd. Tolerance: fp32 sums of at most some hundred terms in another
order, 1e-5 of the tensor's scale; bf16 rounds each product to 8 bits, 3e-2.
"""

import threading
import time

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tiny_models import batches, tiny_model
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.utils.checkpoint import checkpoint
from torch.distributed.tensor import DTensor
from row_exchange import sinkhorn_choice
from torch_ranks import run_torch_ranks

import conclave
from conclave._library import operators
from conclave.experts import ExpertAxis, experts_forward

HIDDEN, INTERMEDIATE, EXPERTS = 24, 16, 8
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def plain_experts(hidden, choice, weight, gate_up, down):
    out = torch.zeros_like(hidden)
    for expert in range(gate_up.shape[0]):
        token, place = torch.where(choice == expert)
        gate, up = F.linear(hidden[token], gate_up[expert]).chunk(2, dim=-1)
        row = F.linear(F.silu(gate) * up, down[expert]) * weight[token, place, None].to(hidden.dtype)
        out = out.index_add(0, token, row)
    return out


def choices_of(kind: str, tokens: int, top_k: int, random: torch.Generator) -> torch.Tensor:
    if kind == "one expert":
        return torch.full((tokens, top_k), 5)
    if kind == "first rank only":
        return torch.randint(0, EXPERTS // 4, (tokens, top_k), generator=random)
    return torch.stack([torch.randperm(EXPERTS, generator=random)[:top_k] for _ in range(tokens)]) if tokens else torch.empty(0, top_k, dtype=torch.long)


def error_of(value, expected):
    scale = expected.abs().max().item() if expected.numel() else 0.0
    difference = (value - expected).abs().max().item() if expected.numel() else 0.0
    return difference / max(scale, 1e-6)


def compare_with_plain_loop(axis, kind, tokens_of_rank, top_k, dtype, seed) -> None:
    ranks, rank = dist.get_world_size(), dist.get_rank()
    what = f"{kind}, tokens {tokens_of_rank}, top {top_k}, {dtype}, {ranks} ranks, {axis.config}, seed {seed}"
    random = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=random) * scale).to(dtype)

    gate_up, down = normal(EXPERTS, 2 * INTERMEDIATE, HIDDEN, scale=0.2), normal(EXPERTS, HIDDEN, INTERMEDIATE, scale=0.2)
    inputs = [(normal(tokens, HIDDEN), choices_of(kind, tokens, top_k, random), torch.rand(tokens, top_k, generator=random), normal(tokens, HIDDEN))
              for tokens in tokens_of_rank]

    plain = [tensor.clone().requires_grad_() for tensor in (gate_up, down)]
    expected = []
    for hidden, choice, weight, grad in inputs:
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        out = plain_experts(leaves[0], choice, leaves[1], *plain)
        out.backward(grad)
        expected.append((out.detach(), leaves[0].grad, leaves[1].grad))

    local = slice(rank * EXPERTS // ranks, (rank + 1) * EXPERTS // ranks)
    own = [tensor[local].clone().requires_grad_() for tensor in (gate_up, down)]
    hidden, choice, weight, grad = inputs[rank]
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    out = experts_forward(axis, leaves[0], choice, leaves[1], *own)
    out.backward(grad, retain_graph=True)  # a second backward over the same graph gives the same
    once = [leaf.grad.clone() for leaf in (*leaves, *own)]
    out.backward(grad)
    for leaf, first in zip((*leaves, *own), once, strict=True):
        assert torch.equal(leaf.grad, first + first), what
    got = [out.detach(), *once[:2], *(gradient * ranks for gradient in once[2:])]  # experts' gradients are the mean over the axis
    names = ["output", "gradient of hidden", "gradient of weights", "gradient of gate_up", "gradient of down"]
    for name, value, right in zip(names, got, [*expected[rank], *(tensor.grad[local] for tensor in plain)], strict=True):
        error = error_of(value.float(), right.float())
        assert error < TOLERANCE[dtype], f"{what}: {name} differs by {error:.1e}"


WAYS = ({}, {"overload": "spill", "spill_least_rows": 1}, {"overload": "chunk", "max_tokens_per_rank_factor": 1.0}, {"dispatch_chunks": 3})


def check_operators() -> None:
    ranks = dist.get_world_size()
    mesh = conclave.init({"expert_parallel_degree": ranks})
    for way in WAYS:
        axis = ExpertAxis.of(mesh, EXPERTS, conclave.MoEConfig(**way))
        for kind in ("uniform", "one expert", "first rank only"):
            for tokens in ([7] * ranks, [0] * ranks, [0, *[5] * (ranks - 1)], [1, *[0] * (ranks - 1)], [1500, *[3] * (ranks - 1)]):
                for top_k, dtype in [(1, torch.float32), (3, torch.float32)] + [(2, torch.bfloat16)] * (tokens[0] == 7):
                    compare_with_plain_loop(axis, kind, tokens, top_k, dtype, seed=11)
    check_lending(mesh)
    check_frozen_experts(mesh)
    check_waiting_does_not_hold_the_interpreter(mesh)


def check_lending(mesh) -> None:
    """overload: spill does lend: with all tokens for one expert, weights travel beside rows, and nothing but rounding changes."""
    random, seen = torch.Generator().manual_seed(dist.get_rank()), {}
    hidden, weight = torch.randn(300, HIDDEN, generator=random), torch.rand(300, 2, generator=random)
    local = EXPERTS // dist.get_world_size()
    for overload in ("none", "spill", None):  # None: spill, on one host
        axis = ExpertAxis.of(mesh, EXPERTS, conclave.MoEConfig(overload=overload))
        own = [torch.full((local, 2 * INTERMEDIATE, HIDDEN), 0.1).requires_grad_(), torch.full((local, HIDDEN, INTERMEDIATE), 0.1).requires_grad_()]
        with CountCollectives() as count:
            out = experts_forward(axis, hidden, choices_of("one expert", 300, 2, random), weight, *own)
            out.sum().backward()
        seen[overload] = out, own, count.travels
    assert error_of(seen["spill"][0], seen["none"][0]) < 1e-5
    for left, right in zip(seen["spill"][1], seen["none"][1], strict=True):
        assert error_of(left.grad, right.grad) < 1e-5
    assert seen["none"][2] == 3 + 2 and seen["spill"][2] == 4 + 4  # weights lent, lent again for backward, and their gradients home
    assert seen[None][2] == seen["spill"][2]


def check_default_overload() -> None:
    """As a job's (docs/dispatch.md)."""
    for keys, within, across in (({}, "spill", "none"), ({"spill_threshold": 1.1}, "spill", "spill"), ({"spill_least_rows": 9}, "spill", "spill"),
                                 ({"dispatch_chunks": 2}, "none", "none"), ({"dispatch_chunks": 1}, "spill", "none"),
                                 ({"overload": "none"}, "none", "none"), ({"overload": "spill"}, "spill", "spill")):
        config = conclave.MoEConfig(**keys)
        assert (config.overload_on(spans_hosts=False), config.overload_on(spans_hosts=True)) == (within, across), keys
    assert not conclave.init({"expert_parallel_degree": 2}).spans_hosts
    for names, degree, spans in ((["a", "a"], 2, False), (["a", "b"], 2, True), (["a", "b"], 1, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conclave.mesh, "_this_host", lambda: names[dist.get_rank()])
            assert conclave.init({"expert_parallel_degree": degree}).spans_hosts == spans


def check_frozen_experts(mesh) -> None:
    """Gradients of experts that nobody trains are neither computed nor sent home; those of tokens and weights are the same bits."""
    random = torch.Generator().manual_seed(dist.get_rank())
    hidden, weight = torch.randn(300, HIDDEN, generator=random), torch.rand(300, 2, generator=random)
    local = EXPERTS // dist.get_world_size()
    for way in WAYS:
        axis, seen = ExpertAxis.of(mesh, EXPERTS, conclave.MoEConfig(**way)), []
        for trained in (True, False):
            own = [(torch.randn(local, *shape, generator=torch.Generator().manual_seed(5)) * 0.1).requires_grad_(trained)
                   for shape in ((2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))]
            leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
            with CountCollectives() as count:
                experts_forward(axis, leaves[0], choices_of("one expert", 300, 2, random), leaves[1], *own).square().sum().backward()
            assert all((parameter.grad is not None) == trained for parameter in own)
            seen.append((count.travels, [leaf.grad for leaf in leaves]))
        assert seen[0][0] - seen[1][0] == (way.get("overload") == "spill" or not way), f"{way}: {seen[0][0]} and {seen[1][0]} collectives"
        assert all(torch.equal(left, right) for left, right in zip(seen[0][1], seen[1][1], strict=True)), way


def check_waiting_does_not_hold_the_interpreter(mesh) -> None:
    """While a rank waits for rows of another, its other Python threads run."""
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.01):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    if dist.get_rank() > 0:
        thread.start()
    else:
        time.sleep(0.5)
    local = EXPERTS // dist.get_world_size()
    experts_forward(ExpertAxis.of(mesh, EXPERTS), torch.zeros(1, HIDDEN), torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1),
                    torch.zeros(local, 2 * INTERMEDIATE, HIDDEN), torch.zeros(local, HIDDEN, INTERMEDIATE))
    if dist.get_rank() > 0:
        done.set()
        thread.join()
        assert len(ticks) >= 10, f"{len(ticks)} ticks in half a second of waiting"
    dist.barrier()


class CountCollectives:
    """How many collectives the experts of all ranks need, a layer: forward three (how many rows, rows there and back), backward two."""

    def __enter__(self):
        self._before = self._calls()
        return self

    def __exit__(self, *_):
        self.travels = self._calls() - self._before

    @staticmethod
    def _calls() -> int:
        return operators().group_traffic(dist.group.WORLD.group_name)[0]


def check_checkpointing() -> None:
    """Gradients with recomputation are those without, and no row travels again: through Transformers' switch and around a layer of one's own."""
    conclave.init({"expert_parallel_degree": 2})
    tokens = batches(1, 2)[0, dist.get_rank()]
    seen = {}
    for policy in ("none", "checkpointed"):
        model = conclave.transform(tiny_model("mixtral", output_router_logits=True))
        if policy == "checkpointed":
            model.gradient_checkpointing_enable()
        with CountCollectives() as count:
            model(input_ids=tokens, labels=tokens).loss.backward()
        seen[policy] = count.travels, [parameter.grad for parameter in model.parameters()], conclave.load_metrics(model)
    assert seen["none"][0] == 2 * (3 + 2), seen["none"][0]
    assert seen["checkpointed"][0] == seen["none"][0]
    assert seen["checkpointed"][2] == seen["none"][2], "recomputed tokens were counted"
    for left, right in zip(seen["none"][1], seen["checkpointed"][1], strict=True):
        assert torch.equal(getattr(left, "_local_tensor", left), getattr(right, "_local_tensor", right))

    layer = conclave.nn.MoE(HIDDEN, INTERMEDIATE, EXPERTS, 2)
    hidden = torch.randn(10, HIDDEN, requires_grad=True)
    for context, travels in (({"context_fn": conclave.checkpoint_context}, 3 + 2), ({}, 3 + 3 + 2)):
        with CountCollectives() as count:
            checkpoint(lambda x: layer(x)[0], hidden, use_reentrant=False, **context).square().sum().backward()
        assert count.travels == travels, f"{count.travels} travels with {context}"

    # A recomputed router that chooses otherwise would make gradients of another function.
    random = torch.Generator().manual_seed(3)
    choices = [choices_of("uniform", 10, 2, random).int() for _ in range(2)]

    def changing(x):
        return experts_forward(layer.experts.conclave_axis, x, choices.pop(), torch.ones(10, 2), layer.experts.gate_up_proj, layer.experts.down_proj)

    with pytest.raises(RuntimeError, match="a recomputed router chose other experts"):
        checkpoint(changing, hidden, use_reentrant=False, context_fn=conclave.checkpoint_context).sum().backward()


def check_layer_of_ones_own() -> None:
    """conclave.nn.MoE: the same on every layout, against the plain loop, and under torch.compile."""
    outputs = []
    for degree in (1, 2):
        conclave.init({"expert_parallel_degree": degree})
        layer = conclave.nn.MoE(HIDDEN, INTERMEDIATE, EXPERTS, 2, initializer_range=0.3)
        hidden = torch.randn(2, 9, HIDDEN, generator=torch.Generator().manual_seed(dist.get_rank()))
        out, logits = layer(hidden)
        outputs.append(out.detach())
        weight, choice = torch.topk(F.softmax(logits, dim=-1), 2, dim=-1)
        whole = [part.full_tensor() if isinstance(part, DTensor) else part for part in (layer.experts.gate_up_proj, layer.experts.down_proj)]
        plain = plain_experts(hidden.flatten(0, 1), choice, weight / weight.sum(-1, keepdim=True), *whole)
        assert error_of(out.flatten(0, 1), plain) < 1e-5
    assert error_of(outputs[1], outputs[0]) < 1e-5
    compiled = torch.compile(layer, backend="aot_eager")
    out, _ = compiled(hidden)
    assert error_of(out, outputs[1]) < 1e-5
    out.sum().backward()
    assert layer.gate.weight.grad is not None


def check_dtypes() -> None:
    """bf16 by autocast, and by FSDP2's mixed precision with experts inside and outside of FSDP: near fp32, and gradients in the parameters' dtype."""
    tokens = batches(1, 2)[0, dist.get_rank()]
    exact = tiny_model("mixtral")(input_ids=tokens, labels=tokens).loss.item()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for degree in (1, 2):
        conclave.init({"expert_parallel_degree": degree})
        model = conclave.fully_shard(conclave.transform(tiny_model("mixtral")), mp_policy=policy)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        assert loss.item() == pytest.approx(exact, rel=2e-2)
        assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    model = conclave.fully_shard(conclave.transform(tiny_model("mixtral")), offload_policy=CPUOffloadPolicy(pin_memory=False))
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=1e-5)
    model = conclave.transform(tiny_model("mixtral"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=2e-2)


def even_choice(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Sinkhorn's iteration over all tokens at once, in double precision and as plainly as it is written (docs/balancing.md)."""
    score = torch.softmax(logits.double(), dim=1)
    scale = torch.ones(score.shape[1], dtype=torch.float64)
    for _ in range(50):
        wanted = score * scale
        low, high = torch.full((len(score), 1), -300.0, dtype=torch.float64), torch.full((len(score), 1), 300.0, dtype=torch.float64)
        for _ in range(100):  # the factor of each token with which its shares, at most 1, are top_k in all
            middle = (low + high) / 2
            too_few = (wanted * middle.exp()).clamp(max=1).sum(dim=1, keepdim=True) < top_k
            low, high = torch.where(too_few, middle, low), torch.where(too_few, high, middle)
        relative = (wanted * high.exp()).clamp(max=1).sum(dim=0) * score.shape[1] / (score.shape[0] * top_k)
        scale = scale / relative
        if (relative - 1).abs().max() <= 1e-2:
            break
    return (score * scale).topk(top_k).indices


def check_sinkhorn() -> None:
    """Choices are those over all ranks' tokens, training does not depend on the expert degree, recomputation asks nobody again, evaluation is plain."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    everyone = [torch.randn(tokens, EXPERTS, generator=torch.Generator().manual_seed(tokens)) * 2 for tokens in (40, 9)]
    choice = sinkhorn_choice(everyone[rank], 2, dist.group.WORLD.group_name)
    begin = 40 * rank
    assert torch.equal(choice, even_choice(torch.cat(everyone), 2)[begin : begin + everyone[rank].shape[0]])

    tokens, losses, loads = batches(1, ranks, sequences=4)[0, rank], [], []
    for degree, checkpointing in ((1, False), (2, False), (2, True)):
        conclave.init({"expert_parallel_degree": degree, "moe": {"moe_load_balancing": "sinkhorn"}})
        model = conclave.transform(tiny_model("mixtral"))
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        conclave.synchronize_gradients(model)
        losses.append((loss.item(), conclave.clip_grad_norm_(model, 1.0).item()))
        loads.append(conclave.load_metrics(model)["expert_imbalance"])
    for loss, norm in losses[1:]:
        assert loss == pytest.approx(losses[0][0], rel=1e-5) and norm == pytest.approx(losses[0][1], rel=1e-5)
    plain = conclave.transform(tiny_model("mixtral"), conclave.MoEConfig())
    plain(input_ids=tokens, labels=tokens)
    assert max(loads) < 1.5 and max(loads) < conclave.load_metrics(plain)["expert_imbalance"]
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens).logits, plain.eval()(tokens).logits)


def on_two_ranks() -> None:
    check_default_overload()
    check_operators()
    check_sinkhorn()
    check_checkpointing()
    check_layer_of_ones_own()
    check_dtypes()


def test_on_two_ranks():
    run_torch_ranks(2, on_two_ranks)


@pytest.mark.slow
def test_on_four_ranks():
    run_torch_ranks(4, check_operators)

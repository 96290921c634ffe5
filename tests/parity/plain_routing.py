"""The rules of docs/balancing.md and docs/dispatch.md in plain PyTorch, put into the routers of a model of Transformers: the oracle of how a family's own
router (groups, selection biases, sigmoid scores) and a rule of Conclave's go together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel


@dataclass
class Seen:
    """Of one router in the newest forward pass."""

    logits: torch.Tensor  # [T,E]
    probability: torch.Tensor  # [T,E], sums to 1
    choice: torch.Tensor  # [T,K]


class PlainRouting:
    """Takes over the routers of `model`. `rule`: keys of the section moe. `numbers`: of each token through the stream of samples, before each forward."""

    def __init__(self, model: PreTrainedModel, rule: dict[str, Any]) -> None:
        self.rule, self.config, self.numbers = rule, model.config, torch.empty(0)
        self.gates = [module for name, module in model.named_modules() if name.endswith(("mlp.gate", "mlp.router"))]
        self.has_bias = hasattr(self.gates[0], "e_score_correction_bias")  # and then sigmoid scores, of which groups are chosen
        experts, self.top_k = self.gates[0].weight.shape[0], model.config.num_experts_per_tok
        self.bias = [gate.e_score_correction_bias if self.has_bias else torch.zeros(experts) for gate in self.gates]
        self.seen: list[Seen] = []
        self.dropped = self.chosen = 0
        for number, gate in enumerate(self.gates):
            gate.register_forward_hook(lambda gate, inputs, output, number=number: self._route(number, *output))

    def begin(self, numbers: torch.Tensor) -> None:
        self.numbers, self.seen = numbers, []

    def finish_step(self) -> None:
        """Moves the selection biases (docs/balancing.md, bias)."""
        if self.rule["moe_load_balancing"] != "bias":
            return
        with torch.no_grad():
            for bias, seen in zip(self.bias, self.seen, strict=True):
                count = torch.bincount(seen.choice.flatten(), minlength=len(bias)).float()
                bias += self.rule["bias_update_rate"] * (count.mean() - count).sign()

    def loss(self, out: object) -> torch.Tensor:
        """The balancing losses with their coefficients."""
        if self.rule["moe_load_balancing"] != "aux_loss":
            return torch.zeros(())
        losses = []
        for seen in self.seen:
            experts = seen.probability.shape[1]
            count = torch.bincount(seen.choice.flatten(), minlength=experts).float() / len(seen.choice)
            losses.append(experts * (count * seen.probability.mean(0)).sum())
        z = torch.cat([seen.logits for seen in self.seen]).logsumexp(-1).square().mean()
        return self.rule["moe_aux_loss_coeff"] * torch.stack(losses).mean() + self.rule.get("moe_z_loss_coeff", 0.0) * z

    def _route(self, number: int, logits: torch.Tensor, weight: torch.Tensor, choice: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores = logits.float().sigmoid() if self.has_bias else logits.float().softmax(-1)
        with torch.no_grad():
            choice = self._choice(number, scores, choice)
            kept = self._kept(scores, choice)
        self.seen.append(Seen(logits, scores / scores.sum(-1, keepdim=True), choice))
        self.dropped, self.chosen = self.dropped + int((~kept).sum()), self.chosen + kept.numel()
        weight = scores.gather(1, choice)
        if getattr(self.config, "norm_topk_prob", True) and self.config.model_type != "deepseek_v2":
            weight = weight / weight.sum(-1, keepdim=True)
        return logits, weight * kept * getattr(self.config, "routed_scaling_factor", 1.0), choice

    def _choice(self, number: int, scores: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        balancing = self.rule["moe_load_balancing"]
        if balancing == "balanced":
            return (self.numbers[:, None] * self.top_k + torch.arange(self.top_k)) % scores.shape[1]
        if balancing == "sinkhorn":
            return self._sinkhorn(scores.double())
        if balancing == "bias" and not self.has_bias:
            return (scores + self.bias[number]).topk(self.top_k).indices
        return own  # the family's router, its groups and its selection bias included

    def _sinkhorn(self, scores: torch.Tensor) -> torch.Tensor:
        even = len(scores) * self.top_k / scores.shape[1]
        factor = torch.ones(scores.shape[1], dtype=torch.float64)
        for _ in range(50):
            demand = _demand(scores * factor, self.top_k).sum(0)
            factor = factor * even / demand
            if ((demand / even - 1).abs() <= 1e-2).all():
                break
        return (scores * factor).topk(self.top_k).indices

    def _kept(self, scores: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        kept = torch.ones_like(choice, dtype=torch.bool)
        if "capacity_factor" not in self.rule:
            return kept
        most = math.ceil(self.rule["capacity_factor"] * len(scores) * self.top_k / scores.shape[1])
        order = self.numbers.argsort()  # the order of the data
        for expert in range(scores.shape[1]):
            takers = [(token, k) for token in order.tolist() for k in range(self.top_k) if choice[token, k] == expert]
            if self.rule["drop_policy"] == "probability":
                takers.sort(key=lambda taker: -scores[taker[0], expert].item())
            for token, k in takers[most:]:
                kept[token, k] = False
        return kept


def _demand(scaled: torch.Tensor, total: int) -> torch.Tensor:
    """min(1, c scaled) with c for each row such that the row sums to `total`; by bisection of log c."""
    low, high = torch.full((len(scaled), 1), -100.0, dtype=torch.float64), torch.full((len(scaled), 1), 100.0, dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        too_small = (middle.exp() * scaled).clamp(max=1).sum(1, keepdim=True) < total
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    return (low.exp() * scaled).clamp(max=1)

"""How tokens fell on the experts: what each layer counts, and what is told of it by the names of metrics.jsonl."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from conclave._library import operators
from conclave.transformed_model import transformed

DEAD_SHARE = 0.01  # of the mean of a layer's experts, as in docs/balancing.md


@dataclass
class LayerLoad:
    """Of one layer and this rank, since it was last taken."""

    experts: int
    by_router: bool = False  # whether the router tells of its tokens; else only the choices are known
    has_capacity: bool = False
    sums: torch.Tensor | None = None  # double [2 E + 2]: choices and probabilities by expert, logsumexp^2, highest probabilities
    tokens: int = 0
    dropped: int | torch.Tensor = 0  # choices
    since_update: torch.Tensor | None = None  # int64 [E]: choices since the optimizer's last step, where a rule follows them

    def count(self, expert_of_choice: torch.Tensor) -> None:
        """What the experts of a layer see of training, unless its router tells more."""
        if not self.by_router:
            counts = torch.bincount(expert_of_choice.detach().flatten(), minlength=self.experts).double()
            self._add(torch.cat([counts, counts.new_zeros(self.experts + 2)]), len(expert_of_choice))

    def record(self, logits: torch.Tensor, choice: torch.Tensor, dispatched: torch.Tensor) -> None:
        """What a router sees of training: logits [T,E], the choices [T,K], and -1 in `dispatched` for those that were dropped."""
        self._add(operators().routing_statistics(logits.detach().float(), choice), len(choice))
        if self.has_capacity:
            self.dropped = self.dropped + (dispatched < 0).sum()
        if self.since_update is not None:
            self.since_update += torch.bincount(choice.flatten(), minlength=self.experts)

    def take(self, device: str) -> tuple[torch.Tensor, int, torch.Tensor]:
        """(sums, tokens, dropped choices); starts anew."""
        sums = torch.zeros(2 * self.experts + 2, dtype=torch.float64, device=device) if self.sums is None else self.sums
        taken = sums, self.tokens, torch.as_tensor(self.dropped, dtype=torch.float64, device=device)
        self.sums, self.tokens, self.dropped = None, 0, 0
        return taken

    def _add(self, sums: torch.Tensor, tokens: int) -> None:
        self.sums = sums if self.sums is None else self.sums.add_(sums)
        self.tokens += tokens


def placed_by_layer(model: nn.Module, of_mixtures: list) -> list:
    """The same as entries of the model's layers, whose numbers are in the modules' names; None for a layer without experts."""
    found = [re.search(r"(?:^|\.)(\d+)(?:\.|$)", name) for name in transformed(model, "conclave.load_metrics").experts]
    numbers = [int(match[1]) if match else -1 for match in found]
    if -1 in numbers or len(set(numbers)) < len(numbers):
        return of_mixtures  # a model of its own kind: in order
    count = max(*numbers, getattr(getattr(model, "config", None), "num_hidden_layers", 0) - 1) + 1
    return [of_mixtures[numbers.index(layer)] if layer in numbers else None for layer in range(count)]


def load_metrics(model: nn.Module) -> dict[str, float | int | list]:
    """How evenly tokens of training fell on the experts since the last call, over all ranks. Collective; starts the count anew.

    The names are those of metrics.jsonl (docs/balancing.md): `expert_imbalance`, `expert_share`, `load_entropy`, `router_confidence`, `dead_experts`, each
    also `_by_layer` (None for a layer without experts), with `aux_loss_by_layer` and `z_loss_by_layer`, without coefficients; besides,
    `expert_imbalance_max` of the most uneven layer, and `drop_rate` where experts have a capacity. `dead_experts` got less than 1 % of their layer's mean
    since the last call. What only a router knows (confidence and losses) is told of softmax routers.
    """
    state = transformed(model, "conclave.load_metrics")
    loads = [module.conclave_axis.load for module in state.experts.values()]
    device = state.mesh.device_type
    taken = [load.take(device) for load in loads]
    told = operators().load_statistics(torch.stack([sums for sums, _, _ in taken]), max(tokens for _, tokens, _ in taken), dist.group.WORLD.group_name)
    if not told:
        return {"expert_imbalance": 0.0, "expert_imbalance_max": 0.0, "dead_experts": sum(load.experts for load in loads)}
    count, share, imbalance, entropy, aux_loss, z_loss, confidence = told
    imbalance, entropy = imbalance.nan_to_num(0.0), entropy.nan_to_num(0.0)  # of a layer that no token has reached
    dead = (count <= DEAD_SHARE * count.mean(dim=1, keepdim=True)).sum(dim=1)
    metrics = {"expert_imbalance": imbalance.mean().item(), "expert_imbalance_max": imbalance.max().item(),
               "expert_imbalance_by_layer": imbalance.tolist(), "expert_share": (count.sum(0) / count.sum()).tolist(),
               "load_entropy": entropy.mean().item(), "dead_experts": int(dead.sum().item()), "expert_share_by_layer": share.nan_to_num(0.0).tolist(),
               "load_entropy_by_layer": entropy.tolist(), "dead_experts_by_layer": dead.tolist()}
    if all(load.by_router for load in loads):
        metrics |= {"router_confidence": confidence.mean().item(), "router_confidence_by_layer": confidence.tolist(),
                    "aux_loss_by_layer": aux_loss.tolist(), "z_loss_by_layer": z_loss.tolist()}
    metrics |= {name: placed_by_layer(model, values) for name, values in metrics.items() if name.endswith("_by_layer")}
    if loads[0].has_capacity:
        dropped = torch.stack([dropped for _, _, dropped in taken]).sum()
        dist.all_reduce(dropped)
        metrics["drop_rate"] = dropped.item() / count.sum().item()
    return metrics

"""conclave.nn: the MoE layer alone, for a model of one's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from conclave._library import operators
from conclave.adapters import adopt_before_forward
from conclave.errors import ConfigError
from conclave.experts import ExpertAxis, divided, module_forward
from conclave.mesh import Mesh, current_mesh


class Experts(nn.Module):
    """SwiGLU experts divided over the expert axis: `gate_up_proj` [E,2I,H] and `down_proj` [E,H,I] as DTensors sharded on dim 0 (plain at degree 1)."""

    def __init__(self, hidden_size: int, intermediate_size: int, num_experts: int, initializer_range: float, name: str) -> None:
        super().__init__()
        mesh = current_mesh()
        mesh.check_experts(num_experts)
        self.num_experts = num_experts
        self.conclave_axis = ExpertAxis.of(mesh, num_experts)
        self.conclave_deltas: dict[str, list] = {}
        axis = self.conclave_axis

        def sliced(part: str, rows: int, columns: int) -> nn.Parameter:
            return divided(axis, _initial(mesh, f"{name}.{part}", axis.begin * rows * columns, (axis.local, rows, columns), initializer_range))

        self.gate_up_proj = sliced("gate_up_proj", 2 * intermediate_size, hidden_size)
        self.down_proj = sliced("down_proj", hidden_size, intermediate_size)

    def forward(self, hidden: torch.Tensor, choice: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """hidden [T,H], choice [T,K] expert numbers, weight [T,K] -> the weighted sums [T,H]. Collective over the expert axis."""
        return module_forward(self, hidden, choice, weight)


class MoE(nn.Module):
    """A mixture of SwiGLU experts with a softmax top-k router, its experts divided over the expert axis of the mesh of `conclave.init`.

    Initial values are a function of (seed of the mesh, `name`, place): the same on every layout; give each layer a name of its own. A model with such
    layers can be given to `fully_shard`, `clip_grad_norm_`, `synchronize_gradients`, `parameter_groups`, `load_metrics` and `state_dict`.

    torch.compile works around it: the experts are a graph break, because the number of rows a rank computes follows the routing; router and
    everything around it are compiled.

    Raises:
        LayoutError: the number of experts is not a multiple of the expert degree.
        ConfigError: top_k is not 1 .. num_experts.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, num_experts: int, top_k: int, *, normalize_weights: bool = True,
                 initializer_range: float = 0.02, name: str = "moe") -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ConfigError(f"top_k is {top_k}, but a token chooses 1 to {num_experts} of the {num_experts} experts.")
        self.top_k = top_k
        self.normalize_weights = normalize_weights
        self.experts = Experts(hidden_size, intermediate_size, num_experts, initializer_range, f"{name}.experts")
        self.register_forward_pre_hook(adopt_before_forward)
        mesh = self.experts.conclave_axis.mesh
        self.gate = nn.Linear(hidden_size, num_experts, bias=False, device=mesh.device_type)
        with torch.no_grad():
            self.gate.weight.copy_(_initial(mesh, f"{name}.gate.weight", 0, (num_experts, hidden_size), initializer_range))

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [...,H] -> (output [...,H], router logits [T,E]) where T is the product of the leading dims. Collective over the expert axis."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits = self.gate(flat)
        weight, choice = torch.topk(F.softmax(logits.float(), dim=-1), self.top_k, dim=-1)
        if self.normalize_weights:
            weight = weight / weight.sum(dim=-1, keepdim=True)
        return self.experts(flat, choice, weight).reshape(hidden.shape), logits


def _initial(mesh: Mesh, name: str, begin: int, shape: tuple[int, ...], std: float) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return operators().initial_values(name, mesh.seed, begin, count, std).view(shape).to(mesh.device_type)

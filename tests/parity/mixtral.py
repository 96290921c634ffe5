"""Small random Mixtrals: checkpoints as users have them, and what Transformers computes with them in fp32."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import MixtralConfig, MixtralForCausalLM

IGNORED = -100

BASE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    # Ten times Mixtral's own, so that logits and routing differ from token to token in a model this narrow.
    "initializer_range": 0.2,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.02,
}

# A closer decision than this could fall differently in another order of fp32 sums (router logits are of order 1).
CLOSEST_CHOICE = 1e-5


@dataclass(frozen=True)
class Case:
    """A model, how it lies on disk, and a batch for it."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)  # on top of BASE
    batch: int = 4
    sequence: int = 16
    disk: str = "v4"  # v4, v4_config, v5_fused, sharded or bf16
    ignored: str = "none"  # labels that are IGNORED: none, some, or all of the first sequence
    favourites: tuple[int, ...] = ()  # experts that get every token
    seed: int = 1

    @property
    def experts(self) -> int:
        return {**BASE, **self.model}["num_local_experts"]

    def __str__(self) -> str:
        return f"{self.name} (seed {self.seed})"


def make_model(case: Case) -> MixtralForCausalLM:
    torch.manual_seed(case.seed)
    config = MixtralConfig(**{**BASE, **case.model}, attn_implementation="eager", experts_implementation="eager")
    model = MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # else 1, and a norm that ignores its weight would not be noticed
                parameter.uniform_(0.5, 1.5)
        if case.favourites:
            # Component 0 is 2 in every token of every layer, and the router looks at it. Not larger, or all tokens look
            # alike and the gradients of attention cancel to less than their terms' roundoff.
            model.model.embed_tokens.weight[:, 0] = 2.0
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight[0] = 0.0
                layer.mlp.experts.down_proj[:, 0] = 0.0
                layer.post_attention_layernorm.weight[0] = 1.0
                gate = layer.mlp.gate.weight
                gate.mul_(0.05)
                gate[:, 0] = 0.0
                gate[list(case.favourites), 0] = 0.5
        if case.disk == "bf16":  # of parameters only: Transformers keeps the rotary frequencies in fp32
            for parameter in model.parameters():
                parameter.copy_(parameter.to(torch.bfloat16))
    return model


def save_model(model: MixtralForCausalLM, folder: Path, disk: str) -> None:
    """Writes the checkpoint in one of the forms that users have."""
    if disk == "sharded":
        model.save_pretrained(folder, max_shard_size="40KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
        assert (folder / "model.safetensors.index.json").exists()
    elif disk == "bf16":
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    elif disk == "v5_fused":
        model.config.save_pretrained(folder)
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )
    else:
        model.save_pretrained(folder)
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text())
    if disk == "v4_config":  # as Transformers 4 wrote it
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        config["torch_dtype"] = config.pop("dtype")
        config_file.write_text(json.dumps(config))


def make_batch(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, shifted already, both int64 [B,S]."""
    generator = torch.Generator().manual_seed(case.seed + 1000)
    vocabulary = BASE["vocab_size"]
    tokens = torch.randint(0, vocabulary, (case.batch, case.sequence + 1), generator=generator)
    inputs, targets = tokens[:, :-1].clone(), tokens[:, 1:].clone()
    if case.ignored == "some":
        targets[torch.rand(targets.shape, generator=generator) < 0.3] = IGNORED
    elif case.ignored == "first sequence":
        targets[0] = IGNORED
    return inputs, targets


def lm_loss(logits: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy over the targets that count."""
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction
    )


@dataclass
class Reference:
    values: dict[str, torch.Tensor]  # logits [B,S,V], lm_loss, aux_loss
    gradients: dict[str, torch.Tensor]  # by the name in Transformers
    choices: torch.Tensor  # [L,E] tokens that chose an expert


def compute_reference(model: MixtralForCausalLM, inputs: torch.Tensor, targets: torch.Tensor) -> Reference:
    model.zero_grad()
    out = model(input_ids=inputs)
    config = model.config
    loss = lm_loss(out.logits, targets)
    (loss + config.router_aux_loss_coef * out.aux_loss).backward()
    routing = torch.stack([logits.detach().view(-1, config.num_local_experts) for logits in out.router_logits])
    chosen = config.num_experts_per_tok
    ordered = routing.sort(dim=-1, descending=True).values
    if chosen < config.num_local_experts:
        margin = (ordered[..., chosen - 1] - ordered[..., chosen]).min().item()
        assert margin > CLOSEST_CHOICE, f"a choice of experts by {margin}: take another seed"
    choices = torch.nn.functional.one_hot(routing.topk(chosen).indices, config.num_local_experts).sum((1, 2))
    values = {"logits": out.logits.detach(), "lm_loss": loss.detach(), "aux_loss": out.aux_loss.detach()}
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return Reference(values, gradients, choices)


def as_transformers_names_it(name: str, on_disk: dict[str, torch.Tensor], prefix: str = "") -> torch.Tensor:
    """The tensor that Transformers 5 holds under `name` in memory, from tensors under the names on disk."""
    if ".mlp.experts." in name:
        layer = name.split(".")[2]
        stem = f"{prefix}model.layers.{layer}.block_sparse_moe.experts."
        experts = 1 + max(int(key[len(stem) :].split(".")[0]) for key in on_disk if key.startswith(stem))
        parts = ["w1", "w3"] if name.endswith("gate_up_proj") else ["w2"]
        return torch.stack(
            [torch.cat([on_disk[f"{stem}{expert}.{part}.weight"] for part in parts]) for expert in range(experts)]
        )
    return on_disk[prefix + name.replace(".mlp.gate.", ".block_sparse_moe.gate.")]

"""Small random models of the families that the program trains: checkpoints as Transformers writes them, and what it computes with them in fp32."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

IGNORED = -100

# A closer decision than this could fall differently in another order of fp32 sums (router logits are of order 1).
CLOSEST_CHOICE = 1e-5

COMMON = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    # Ten times the families' own, so that logits and routing differ from token to token in a model this narrow.
    "initializer_range": 0.2,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}
# Of routers whose loss Transformers has.
ROUTED = {"num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.02}
# Of DeepSeek's mixtures: a dense layer, then one with groups of experts and shared ones.
DEEPSEEK = {"intermediate_size": 48, "moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 2,
            "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2}
# Latent attention.
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0, "beta_slow": 1.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 48, "num_local_experts": 8, **ROUTED},
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 48, "intermediate_size": 64, "head_dim": 8, "norm_topk_prob": True, **ROUTED},
    "qwen2_moe": {"num_experts": 8, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "intermediate_size": 64, **ROUTED},
    "olmoe": {"num_experts": 8, "intermediate_size": 48, "norm_topk_prob": False, **ROUTED},
    "llama": {"intermediate_size": 80},
    "mistral": {"intermediate_size": 80, "head_dim": 12, "sliding_window": 7},
    "qwen3": {"intermediate_size": 80, "head_dim": 12},
    "deepseek_v2": {**DEEPSEEK, **LATENT, "topk_method": "group_limited_greedy", "norm_topk_prob": False},
    "deepseek_v3": {**DEEPSEEK, **LATENT, "routed_scaling_factor": 2.5},
    "glm4_moe": {**DEEPSEEK, "head_dim": 12, "attention_bias": True, "use_qk_norm": True, "routed_scaling_factor": 1.5},
    "gpt_oss": {"intermediate_size": 24, "num_local_experts": 8, "head_dim": 8, "sliding_window": 5, "rope_parameters": {**YARN, "truncate": False}, **ROUTED},
}


def has_experts(family: str) -> bool:
    return "num_experts_per_tok" in FAMILIES[family]


@dataclass(frozen=True)
class Case:
    """A model, and a batch for it."""

    family: str
    name: str = "base"
    model: dict[str, Any] = field(default_factory=dict)  # on top of COMMON and the family's
    batch: int = 4
    sequence: int = 16
    ignored: bool = False  # some labels are IGNORED
    seed: int = 1

    def __str__(self) -> str:
        return f"{self.family}, {self.name} (seed {self.seed})"


# The kinds of rotary scaling are those that the family's Transformers class takes.
CASES = [
    Case("mixtral"),
    Case("qwen3_moe"),
    Case("qwen3_moe", "dense layers among sparse ones", {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}, batch=3),
    Case("qwen3_moe", "window, biases, weights as they are", {"norm_topk_prob": False, "use_sliding_window": True, "sliding_window": 5,
                                                              "attention_bias": True}, ignored=True),
    Case("qwen3_moe", "tied, 6 experts, 3 chosen", {"tie_word_embeddings": True, "num_experts": 6, "num_experts_per_tok": 3, "head_dim": 12}, batch=1),
    Case("qwen2_moe"),
    Case("qwen2_moe", "window in even layers, a dense layer, no biases, renormalized", {
        "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3, "num_hidden_layers": 4, "mlp_only_layers": [1], "qkv_bias": False,
        "norm_topk_prob": True, "num_experts_per_tok": 3}, batch=3, ignored=True),
    Case("olmoe"),
    Case("olmoe", "grouped heads, renormalized", {"num_key_value_heads": 1, "norm_topk_prob": True, "num_experts_per_tok": 3}, batch=3, sequence=13),
    Case("olmoe", "biases, three layers", {"attention_bias": True, "num_hidden_layers": 3}, ignored=True),
    Case("llama"),
    Case("llama", "biases", {"attention_bias": True}),
    Case("llama", "multi-head attention, three layers", {"num_key_value_heads": 4, "num_hidden_layers": 3}),
    Case("llama", "tied", {"tie_word_embeddings": True}, ignored=True),
    Case("llama", "one sequence: ranks have none", batch=1),
    Case("llama", "odd sizes", {"hidden_size": 36, "intermediate_size": 50, "head_dim": 10, "vocab_size": 101}, batch=3, sequence=13),
    Case("llama", "linear scaling", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}}),
    Case("llama", "llama3 scaling", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
                                                        "high_freq_factor": 4.0, "original_max_position_embeddings": 16}}),
    Case("llama", "yarn scaling", {"rope_parameters": YARN}),
    Case("llama", "yarn scaling of its own factor, not truncated", {"rope_parameters": {**YARN, "attention_factor": 1.3, "truncate": False}}),
    Case("mistral"),
    Case("mistral", "no window", {"sliding_window": None, "head_dim": 8}),
    Case("qwen3"),
    Case("qwen3", "a window from layer 1 on", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "num_hidden_layers": 3}),
    Case("qwen3", "biases, tied, layers by their types", {
        "attention_bias": True, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 6, "num_key_value_heads": 4,
        "layer_types": ["sliding_attention", "full_attention"]}, batch=3),
    Case("deepseek_v2"),
    Case("deepseek_v2", "no latent of queries", {"q_lora_rank": None}, batch=3, sequence=13),
    Case("deepseek_v2", "yarn", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.5}}),
    Case("deepseek_v3"),
    Case("deepseek_v3", "no latent of queries", {"q_lora_rank": None}),
    Case("deepseek_v3", "biases, yarn, halves", {"attention_bias": True, "rope_interleave": False,
                                                 "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8}}, batch=1, sequence=19),
    Case("deepseek_v3", "values larger than keys", {"qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 14}),
    Case("gpt_oss"),
    Case("gpt_oss", "three choices of six, three layers", {"num_local_experts": 6, "num_experts_per_tok": 3, "num_hidden_layers": 3}, batch=3, sequence=13),
    Case("glm4_moe", "neither norms nor biases, a quarter turns", {"attention_bias": False, "use_qk_norm": False, "head_dim": 16,
                                                                   "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0,
                                                                                       "partial_rotary_factor": 0.25}}),
    Case("glm4_moe"),
    Case("glm4_moe", "all experts sparse, one shared, three choices", {"first_k_dense_replace": 0, "n_shared_experts": 1, "num_experts_per_tok": 3}, batch=3, sequence=13),
    Case("glm4_moe", "no groups, not renormalized", {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "num_hidden_layers": 3}, ignored=True),
]


def make_model(case: Case) -> PreTrainedModel:
    torch.manual_seed(case.seed)
    config = AutoConfig.for_model(case.family, **{**COMMON, **FAMILIES[case.family], **case.model})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # else 1, and a norm that ignores its weight would not be noticed
                parameter.uniform_(0.5, 1.5)
            elif parameter.dim() == 1:  # biases, sinks: else 0
                parameter.normal_(0, 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):  # of the size of a score, so that it decides
                buffer.normal_(0, 0.2)
    return model


def make_batch(case: Case, model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, shifted already, both int64 [B,S]."""
    generator = torch.Generator().manual_seed(case.seed + 1000)
    tokens = torch.randint(0, model.config.vocab_size, (case.batch, case.sequence + 1), generator=generator)
    inputs, targets = tokens[:, :-1].clone(), tokens[:, 1:].clone()
    if case.ignored:
        targets[torch.rand(targets.shape, generator=generator) < 0.3] = IGNORED
    return inputs, targets


def lm_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def balancing_loss(model: PreTrainedModel, out: Any) -> torch.Tensor:
    """As Transformers adds it to the loss, where the family has one."""
    aux = getattr(out, "aux_loss", None)
    return torch.zeros(()) if aux is None else model.config.router_aux_loss_coef * aux


def check_choices(case: Case, model: PreTrainedModel, out: Any, closest: float = CLOSEST_CHOICE) -> None:
    for logits in getattr(out, "router_logits", None) or ():
        ordered = logits.detach().sort(dim=-1, descending=True).values
        chosen = model.config.num_experts_per_tok
        if chosen < ordered.shape[-1]:
            margin = (ordered[..., chosen - 1] - ordered[..., chosen]).min().item()
            assert margin > closest, f"{case}: a choice of experts by {margin}: take another seed"


def on_disk(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def save_gradients(model: PreTrainedModel, folder: Path) -> dict[str, torch.Tensor]:
    """By the names that Transformers gives the model: in `folder`, a scratch one, they are saved as if they were it."""
    gradients = copy.deepcopy(model)
    with torch.no_grad():
        for mine, theirs in zip(gradients.parameters(), model.parameters(), strict=True):
            mine.copy_(torch.zeros_like(theirs) if theirs.grad is None else theirs.grad)
    gradients.save_pretrained(folder)
    return {name: gradient for name, gradient in on_disk(folder).items() if not name.endswith("e_score_correction_bias")}


@dataclass
class Reference:
    values: dict[str, torch.Tensor]  # logits [B,S,V], lm_loss, aux_loss
    gradients: dict[str, torch.Tensor]  # by the name on disk


def compute_reference(case: Case, model: PreTrainedModel, inputs: torch.Tensor, targets: torch.Tensor, folder: Path,
                      closest: float = CLOSEST_CHOICE) -> Reference:
    """`folder`: as save_gradients takes it."""
    model.zero_grad()
    out = model(input_ids=inputs)
    check_choices(case, model, out, closest)
    loss = lm_loss(out.logits, targets)
    (loss + balancing_loss(model, out)).backward()
    values = {"logits": out.logits.detach(), "lm_loss": loss.detach()}
    if getattr(out, "aux_loss", None) is not None:
        values["aux_loss"] = out.aux_loss.detach()
    return Reference(values, save_gradients(model, folder))

"""Tiny models of the families that conclave.transform supports, as Transformers builds them."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_COMMON = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
               num_experts_per_tok=2, pad_token_id=None, bos_token_id=0, eos_token_id=None, tie_word_embeddings=False, use_cache=False,
               router_aux_loss_coef=0.02)
SHAPES = {
    "mixtral": dict(num_local_experts=8, intermediate_size=48, head_dim=8),
    "qwen3_moe": dict(num_experts=8, moe_intermediate_size=48, intermediate_size=64, head_dim=8, mlp_only_layers=[0], norm_topk_prob=True,
                      num_hidden_layers=3),
    "qwen2_moe": dict(num_experts=8, moe_intermediate_size=48, shared_expert_intermediate_size=40, intermediate_size=64),
    "olmoe": dict(num_experts=8, intermediate_size=48, norm_topk_prob=False),
}
_DEEPSEEK = dict(n_routed_experts=8, moe_intermediate_size=48, n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1, intermediate_size=64)
_LATENT = dict(q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, num_key_value_heads=4)
FURTHER_SHAPES = {
    "deepseek_v2": {**_DEEPSEEK, **_LATENT},
    "deepseek_v3": {**_DEEPSEEK, **_LATENT, "n_group": 2},
    "dots1": {**_DEEPSEEK, "head_dim": 8},
    "exaone_moe": dict(num_experts=8, moe_intermediate_size=48, intermediate_size=64),
    "flex_olmo": dict(num_experts=8, intermediate_size=48),
    "glm4_moe": {**_DEEPSEEK, "head_dim": 8},
    "granitemoe": dict(num_local_experts=8, intermediate_size=48),
    "minimax_m2": dict(num_local_experts=8, intermediate_size=48, head_dim=8, rotary_dim=8),
}


def tiny_config(family: str, **changes):
    return AutoConfig.for_model(family, **{**_COMMON, **(SHAPES | FURTHER_SHAPES)[family], **changes})


def tiny_model(family: str, seed: int = 1, **changes) -> PreTrainedModel:
    """The same weights on every rank. Larger than the default's, so that routing and losses differ visibly. Biases are drawn, too: from zero, the first steps
    of AdamW would make them of gradients' rounding alone where the gradient is nearly zero, as that of the keys' biases is."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, initializer_range=0.1, **changes), attn_implementation="eager").train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def batches(steps: int, ranks: int, sequences: int = 2, length: int = 12, seed: int = 5, vocabulary: int = 64) -> torch.Tensor:
    """Tokens [steps, ranks, sequences, length]."""
    return torch.randint(0, vocabulary, (steps, ranks, sequences, length), generator=torch.Generator().manual_seed(seed))

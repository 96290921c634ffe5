"""A byte-level tokenizer that knows any text, with a chat template, and a model of its vocabulary: a folder as Transformers writes it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

TEMPLATE = ("{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
TEXTS = ["The cat sat on the mat. The dog sat on the log.", "na\u00efve caf\u00e9 \u6587\u5b57 \U0001f408 \U0001f436", "def f(x):\n    return x + 1\n"]


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                                         show_progress=False))
    made = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|end|>")
    made.chat_template = TEMPLATE
    return made


def speaking_model(folder: Path, family: str = "mixtral", seed: int = 3, **changes: Any) -> PreTrainedModel:
    """Saved with the tokenizer. Large enough weights that the most likely token is far ahead of the others."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{
        "vocab_size": len(tokenizer()), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
        "eos_token_id": tokenizer().eos_token_id, "bos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False, **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model

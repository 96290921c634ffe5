"""Attention and rotary embeddings of Transformers by the engine's kernels."""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from conclave._library import operators
from conclave.derived_class import stand_before

NAME = "conclave"  # of the implementation, as attn_implementation takes it
DTYPES = (torch.float32, torch.bfloat16)


def accelerate_attention(model: nn.Module) -> int | str:
    layers = [module for module in model.modules() if hasattr(module, "is_causal") and type(module).__name__.endswith("Attention")]
    if not layers or not hasattr(model, "set_attn_implementation"):
        return f"{type(model).__name__} has no attention of Transformers"
    if not (model._supports_sdpa and model._can_set_attn_implementation()):
        return f"the attention of {type(model).__name__} is not one that Transformers lets sdpa compute"
    model.set_attn_implementation(NAME)
    return len(layers)


@torch.compiler.disable
def attention_forward(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
                      dropout: float = 0.0, scaling: float | None = None, sliding_window: int | None = None, is_causal: bool | None = None,
                      **options: Any) -> tuple[torch.Tensor, None]:
    """The attention function that Transformers calls: query [B,N,S,D], key and value [B,KV,S,D] -> [B,S,N,D]."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    reason = _why_not(query, key, attention_mask, dropout, causal, options)
    if reason is None:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return operators().attention(query, key, value, scaling, sliding_window), None
    if reason and torch.is_grad_enabled():
        _warn(reason)
    if attention_mask is None and causal and sliding_window is not None and sliding_window < key.shape[2] == query.shape[2]:
        attention_mask = _window_mask(query.shape[2], sliding_window, query.device)
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **options)


def _why_not(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, dropout: float, causal: bool, options: dict[str, Any]) -> str | None:
    """None: the kernel fits. Empty: it is not made for this, and nobody expects it to, as where one token is generated after the other."""
    if query.shape[2] != key.shape[2] or query.shape[2] == 0:
        return ""
    if mask is not None:
        return "some positions are masked (padding, packed sequences, or a mask of one's own)"
    if dropout:
        return f"attention_dropout is {dropout}"
    if not causal:
        return "it is not causal"
    if query.device.type != "cpu" or query.dtype not in DTYPES or {query.dtype} != {key.dtype}:
        return f"its tensors are {query.dtype} on {query.device.type}"
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    return f"it has {unknown[0]}" if unknown else None


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(f"PyTorch's sdpa computes attention instead of Conclave's kernel, because {reason}.", RuntimeWarning, stacklevel=3)


def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


def attention_mask(batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0, mask_function: Callable[..., Any] | None = None,
                   attention_mask: torch.Tensor | None = None, local_size: int | None = None, allow_is_causal_skip: bool = True,
                   **options: Any) -> torch.Tensor | None:
    """None where the kernel knows by itself who sees whom: each token those before it, or a window of them."""
    whole = q_length == kv_length and isinstance(q_offset, int) and q_offset == 0 and kv_offset == 0 and allow_is_causal_skip
    masks_nobody = attention_mask is None or bool(attention_mask.all())
    if whole and masks_nobody and (local_size is None or _is_window(mask_function, local_size)):
        return None
    given = {} if mask_function is None else {"mask_function": mask_function}
    return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, attention_mask=attention_mask, local_size=local_size,
                     allow_is_causal_skip=allow_is_causal_skip, **given, **options)


def _is_window(mask_function: Callable[..., Any] | None, size: int) -> bool:
    """Whether a token sees the `size` last ones, itself included: chunks of that size look alike from outside."""
    def sees(query: int, key: int) -> bool:
        return bool(mask_function(torch.tensor(0), torch.tensor(0), torch.tensor(query), torch.tensor(key)))

    return mask_function is not None and not sees(size, 0) and sees(size, 1) and sees(size, size) and not sees(size, size + 1)


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, attention_mask)

# Rotary embeddings are a function that the attention's forward finds in its module. It is replaced there once, by one that is another only while an
# attention that was accelerated computes.
_inside = threading.local()


class TurnsByKernel:
    """Stands before a class of attention."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        outer = getattr(_inside, "on", False)
        _inside.on = True
        try:
            return super().forward(*arguments, **options)
        finally:
            _inside.on = outer


def accelerate_rotary(model: nn.Module) -> int | str:
    count = 0
    for module in model.modules():
        if isinstance(module, TurnsByKernel):
            count += 1
        elif hasattr(module, "is_causal") and type(module).__name__.endswith("Attention") and _replace_rotary(type(module).__module__):
            stand_before(module, TurnsByKernel)
            count += 1
    return count or f"{type(model).__name__} has no rotary embedding that turns halves of a head"


@functools.cache
def _replace_rotary(module_name: str) -> bool:
    namespace = sys.modules[module_name]
    plain = getattr(namespace, "apply_rotary_pos_emb", None)
    if plain is None or not _turns_halves(plain):
        return False

    @functools.wraps(plain)
    def apply_rotary_pos_emb(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *arguments: Any,
                             **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if arguments or options or not getattr(_inside, "on", False) or not _fits(query, key, cos, sin):
            return plain(query, key, cos, sin, *arguments, **options)
        return _turned(query, key, cos, sin)

    namespace.apply_rotary_pos_emb = apply_rotary_pos_emb
    return True


def _fits(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    half = cos.shape[-1] // 2
    return (query.device.type == "cpu" and query.dtype in DTYPES and key.dtype == query.dtype and query.ndim == key.ndim == 4 and cos.ndim == 3
            and cos.shape[1] == query.shape[2] > 0 and cos.shape[0] in (1, query.shape[0]) and cos.shape[-1] % 2 == 0
            and cos.shape[-1] <= query.shape[-1] and not cos.requires_grad
            and torch.equal(cos[..., :half], cos[..., half:]) and torch.equal(sin[..., :half], sin[..., half:]))


@torch.compiler.disable
def _turned(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    half = cos.shape[-1] // 2
    table = [each[..., :half].reshape(-1, half).float().contiguous() for each in (cos, sin)]
    rotary = operators().rotary
    return rotary(query, *table).transpose(1, 2), rotary(key, *table).transpose(1, 2)


def _turns_halves(plain: Callable[..., Any]) -> bool:
    """Whether the function turns dims j and j + D/2 of each head together, by trying it."""
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 3, 4, 8, generator=generator), torch.randn(2, 1, 4, 8, generator=generator)
    angle = torch.randn(1, 4, 4, generator=generator).repeat(1, 1, 2)
    try:
        found = plain(query, key, angle.cos(), angle.sin())
    except Exception:  # another signature: another embedding
        return False
    expected = _turned(query, key, angle.cos(), angle.sin())
    return all(each.shape == other.shape and torch.allclose(each, other, atol=1e-6) for each, other in zip(found, expected, strict=True))

"""What sums in a fixed order cost on a GPU. All of our own kernels have no other; FlashAttention's backward pass does, by atomics, and is not used."""

import statistics
import time

SHAPES = {"cuda": dict(heads=32, sequence=4096, head_dim=128), "cpu": dict(heads=2, sequence=32, head_dim=16)}


def measure_attention(device: str, rounds: int) -> dict:
    """Median seconds of attention's backward pass in bf16, causal, with sums in a fixed order and in any; alternating, in one process."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    shape = SHAPES[device]
    sizes = (1, shape["heads"], shape["sequence"], shape["head_dim"])
    leaves = [torch.randn(sizes, dtype=torch.bfloat16, device=device, requires_grad=True) for _ in range(3)]
    gradient = torch.randn(sizes, dtype=torch.bfloat16, device=device)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = scaled_dot_product_attention(*leaves, is_causal=True)
    settle = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.utils.deterministic.fill_uninitialized_memory = False  # as the program has it: no pass over memory besides
    seconds = {"fixed": [], "any": []}
    for _ in range(rounds + 1):  # the first one warms up
        for order, taken in seconds.items():
            torch.use_deterministic_algorithms(order == "fixed")
            settle()
            begin = time.perf_counter()
            torch.autograd.grad(out, leaves, gradient, retain_graph=True)
            settle()
            taken.append(time.perf_counter() - begin)
    fixed, any_order = (statistics.median(taken[1:]) for taken in seconds.values())
    return {"shape": "attention backward", **shape, "fixed_order_seconds": fixed, "any_order_seconds": any_order, "cost": fixed / any_order - 1}

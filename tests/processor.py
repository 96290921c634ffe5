"""What this processor has."""

BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def has_bf16():
    """Whether the program takes precision.compute: bf16 here."""
    with open("/proc/cpuinfo") as file:
        flags = next((line for line in file if line.startswith("flags")), "")
    return not BF16_FLAGS.isdisjoint(flags.split())

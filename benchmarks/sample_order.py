"""Which tokens a rank trains on in a step: Conclave's order of samples, computed a second time from its definition.

The order is a keyed permutation of the samples of an epoch (src/data/permutation.h): a Feistel network of 8 rounds with Philox4x32-10 as the round
function, walked until the value falls inside the set. Nothing of Conclave is used here, so equal losses also say that both read the same tokens.
"""

import struct
from pathlib import Path

import numpy

MASK_32 = (1 << 32) - 1
ROUNDS = 8
KEY_STREAM = 0x9C45EDA72D4D1A9E  # XXH3-64 of the text "data order"

TOKEN_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # Megatron's dtype codes of an .idx file


def philox_words(seed: int, stream: int, block: int) -> list[int]:
    """Philox4x32-10 (Salmon et al., SC 2011): the four 32-bit words of one counter."""
    counter = [block & MASK_32, block >> 32, stream & MASK_32, stream >> 32]
    key = [seed & MASK_32, seed >> 32]
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(second >> 32) ^ counter[1] ^ key[0], second & MASK_32, (first >> 32) ^ counter[3] ^ key[1], first & MASK_32]
        key = [(key[0] + 0x9E3779B9) & MASK_32, (key[1] + 0xBB67AE85) & MASK_32]
    return counter


def random_u64(seed: int, index: int) -> int:
    words = philox_words(seed, KEY_STREAM, index // 2)
    high, low = words[2:] if index % 2 else words[:2]
    return high << 32 | low


def permuted(index: int, n: int, seed: int, epoch: int) -> int:
    """The image of `index` in [0, n)."""
    keys = [random_u64(seed, epoch * ROUNDS + r) for r in range(ROUNDS)]
    half_bits = 0 if n == 1 else ((n - 1).bit_length() + 1) // 2
    half_mask = (1 << half_bits) - 1
    value = index
    while True:
        left, right = value >> half_bits, value & half_mask
        for key in keys:
            left, right = right, left ^ (random_u64(key, right) & half_mask)
        value = left << half_bits | right
        if value < n:
            return value


def read_tokens(prefix: Path) -> numpy.ndarray:
    """All tokens of a .bin/.idx pair, documents one after another."""
    with open(f"{prefix}.idx", "rb") as index:
        magic, _version, code = struct.unpack("<9sQB", index.read(18))
    if magic != b"MMIDIDX\x00\x00":
        raise ValueError(f"{prefix}.idx is not a Megatron index file")
    return numpy.memmap(f"{prefix}.bin", dtype=TOKEN_TYPES[code], mode="r")


def rows_of(tokens: numpy.ndarray, sequence_length: int, seed: int, step: int, world_size: int, rank: int, batch: int) -> numpy.ndarray:
    """The [batch, sequence_length + 1] tokens of a rank in a step (0-based) of one micro-step."""
    samples = (len(tokens) - 1) // sequence_length
    rows = []
    for b in range(batch):
        epoch, place = divmod((step * world_size + rank) * batch + b, samples)
        begin = permuted(place, samples, seed, epoch) * sequence_length
        rows.append(tokens[begin : begin + sequence_length + 1])
    return numpy.stack(rows).astype(numpy.int64)

"""The order of training samples, from its definition in src/data: independent of the program.

The stream's name is hashed by libxxhash; Philox4x32-10 is written from its paper (Salmon et al., "Parallel Random
Numbers: As Easy as 1, 2, 3", SC 2011) and checked by its published vectors in test_training.py.
"""

from __future__ import annotations

import ctypes
import ctypes.util

MASK_32 = 2**32 - 1
ROUNDS_OF_FEISTEL = 8


def xxh3(text: bytes) -> int:
    library = ctypes.CDLL(ctypes.util.find_library("xxhash"))
    library.XXH3_64bits.restype = ctypes.c_uint64
    library.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return library.XXH3_64bits(text, len(text))


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 & MASK_32, (product0 >> 32) ^ c3 ^ k1, product0 & MASK_32
        k0, k1 = (k0 + 0x9E3779B9) & MASK_32, (k1 + 0xBB67AE85) & MASK_32
    return c0, c1, c2, c3


def random_u64(seed: int, stream: int, index: int) -> int:
    block = index // 2
    words = philox((block & MASK_32, block >> 32, stream & MASK_32, stream >> 32), (seed & MASK_32, seed >> 32))
    high, low = words[2 * (index % 2) : 2 * (index % 2) + 2]
    return high << 32 | low


class SampleOrder:
    """Which sample of the set is read as the n-th, over all epochs."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples = samples
        self.seed = seed
        self.stream = xxh3(b"data order")
        self.half_bits = ((samples - 1).bit_length() + 1) // 2

    def __getitem__(self, place: int) -> int:
        epoch, value = divmod(place, self.samples)
        keys = [random_u64(self.seed, self.stream, epoch * ROUNDS_OF_FEISTEL + i) for i in range(ROUNDS_OF_FEISTEL)]
        mask = (1 << self.half_bits) - 1
        while True:
            left, right = value >> self.half_bits, value & mask
            for key in keys:
                left, right = right, left ^ (random_u64(key, self.stream, right) & mask)
            value = left << self.half_bits | right
            if value < self.samples:
                return value

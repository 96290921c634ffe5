"""Token files written with numpy alone, from the description of Megatron's format, and the order in which a run reads samples."""

from pathlib import Path

import numpy as np


def write_token_files(prefix: Path, documents: list[np.ndarray]) -> Path:
    """A .bin/.idx pair of u16 tokens, one sequence per document."""
    lengths = np.array([len(document) for document in documents], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) * 2
    with open(f"{prefix}.idx", "wb") as index:
        index.write(b"MMIDIDX\0\0" + np.uint64(1).tobytes() + np.uint8(8).tobytes())
        index.write(np.uint64(len(documents)).tobytes() + np.uint64(len(documents) + 1).tobytes())
        index.write(lengths.tobytes() + offsets.astype(np.int64).tobytes() + np.arange(len(documents) + 1, dtype=np.int64).tobytes())
    np.concatenate(documents).astype(np.uint16).tofile(f"{prefix}.bin")
    return prefix


def markov_tokens(count: int, vocabulary: int, seed: int) -> np.ndarray:
    """Text with something to learn: each token has a few likely successors."""
    random = np.random.default_rng(seed)
    successors = random.integers(0, vocabulary, size=(vocabulary, 4))
    tokens = np.empty(count, dtype=np.int64)
    token = 0
    for i, (choice, noise) in enumerate(zip(random.integers(0, 4, count), random.random(count))):
        token = successors[token, choice] if noise < 0.9 else int(noise * 1e6) % vocabulary
        tokens[i] = token
    return tokens

"""Token files without a text: for tests, smoke runs and measurements of speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from conclave.data.errors import DataError
from conclave.data.indexed_writer import IndexedWriter, files_of_set, token_type
from conclave.data.outputs import check_outputs
from conclave.data.tokenizer import MOST_IDS

_BLOCK_DOCUMENTS = 256
_STEPS = 64  # how many different steps lead from a token to the next
_DECAY = 0.8  # each is so likely beside the one before it


def write_synthetic(
    output: Path, vocab_size: int, documents: int, document_tokens: int, seed: int = 0, overwrite: bool = False
) -> float:
    """Writes documents in which each token follows from the one before it and a random step.

    A token is the one before plus 1 to 64, modulo the vocabulary, where small steps are likelier. So a model can learn
    something: its loss falls from log(vocab_size) to the steps' entropy. The same arguments give the same files.

    Returns:
        That entropy, in nats a token.

    Raises:
        DataError: a number is out of its range, or the output is there or cannot be written.
    """
    for name, value, most in (
        ("--vocab-size", vocab_size, MOST_IDS),
        ("--documents", documents, MOST_IDS),
        ("--document-tokens", document_tokens, 1 << 24),
    ):
        if not 1 <= value <= most:
            raise DataError(f"{name} {value} is not between 1 and {most:,}")
    check_outputs(files_of_set(output), overwrite)
    likely = _step_probabilities(vocab_size)
    generator = np.random.Generator(np.random.Philox(seed))
    dtype = token_type(vocab_size)
    at_once = max(1, min(_BLOCK_DOCUMENTS, (1 << 20) // document_tokens))
    with IndexedWriter(output, dtype) as writer:
        for begin in range(0, documents, at_once):
            count = min(at_once, documents - begin)
            tokens = _documents(generator, likely, vocab_size, count, document_tokens)
            writer.append(tokens.reshape(-1).astype(dtype), [document_tokens] * count)
        writer.publish()
    return float(-(likely * np.log(likely)).sum())


def _step_probabilities(vocab_size: int) -> npt.NDArray[np.float64]:
    likely = _DECAY ** np.arange(min(_STEPS, vocab_size))
    return likely / likely.sum()


def _documents(
    generator: np.random.Generator, likely: npt.NDArray[np.float64], vocab_size: int, count: int, tokens: int
) -> npt.NDArray[np.int64]:
    """Documents [count, tokens]."""
    steps = generator.choice(len(likely), size=(count, tokens), p=likely) + 1
    steps[:, 0] = generator.integers(0, vocab_size, count)
    return np.cumsum(steps, axis=1) % vocab_size

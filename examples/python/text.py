"""Real text without a download: the sources of Python's standard library as bytes, one token a byte."""

from __future__ import annotations

import torch

from conclave.data.standard_library import standard_library_files


def read_text(bytes_wanted: int = 1_000_000) -> torch.Tensor:
    """At least so many tokens [N] int64, if the library has them."""
    text = b""
    for path in sorted(standard_library_files()):
        text += path.read_bytes()
        if len(text) >= bytes_wanted:
            break
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def batch_of(text: torch.Tensor, step: int, rank: int, ranks: int, sequences: int, length: int) -> torch.Tensor:
    """Tokens [sequences, length] of this rank: stretches at places that follow from the step and the sequence's number among all ranks'."""
    numbers = (step * ranks + rank) * sequences + torch.arange(sequences)
    begins = numbers * 2654435761 % (len(text) - length)  # Knuth's multiplicative hash spreads them
    return torch.stack([text[begin : begin + length] for begin in begins.tolist()])

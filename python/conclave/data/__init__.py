"""Making training data: tokenizers, and Megatron's `.bin`/`.idx` pairs from text.

`python -m conclave.data --help` is the way in.
"""

from conclave.data.build import BuildOptions, Summary, build
from conclave.data.documents import ReadOptions
from conclave.data.errors import DataError
from conclave.data.tokenizer import train_tokenizer

__all__ = ["BuildOptions", "DataError", "ReadOptions", "Summary", "build", "train_tokenizer"]

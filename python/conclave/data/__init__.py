"""Making training data: tokenizers, and Megatron's `.bin`/`.idx` pairs from documents.

`python -m conclave.data --help` is the way in.
"""

from conclave.data.build import BuildOptions, Summary, build
from conclave.data.errors import DataError
from conclave.data.inputs import ReadOptions
from conclave.data.synthetic import write_synthetic
from conclave.data.tokenizer_training import Training, train_tokenizer
from conclave.data.workers import WorkerError

__all__ = [
    "BuildOptions",
    "DataError",
    "ReadOptions",
    "Summary",
    "Training",
    "WorkerError",
    "build",
    "train_tokenizer",
    "write_synthetic",
]

"""An exported model as Transformers sees it: its validation loss.

Nothing of Conclave is used here, so that the numbers are a second opinion:

    python examples/quickstart/check_export.py runs/quickstart/export runs/quickstart/data/stdlib-validation --sequence-length 256
"""

import argparse
import struct
from pathlib import Path

import numpy
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

# Both sum fp32 losses of the same fp32 model over the same tokens, each in an order of its own.
TOLERANCE = 1e-5

TOKEN_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # Megatron's dtype codes of an .idx file


def load(folder: Path) -> PreTrainedModel:
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def read_tokens(prefix: Path) -> numpy.ndarray:
    """All tokens of a .bin/.idx pair, documents one after another."""
    with open(f"{prefix}.idx", "rb") as index:
        magic, _version, code = struct.unpack("<9sQB", index.read(18))
    if magic != b"MMIDIDX\x00\x00":
        raise ValueError(f"{prefix}.idx is not a Megatron index file")
    return numpy.memmap(f"{prefix}.bin", dtype=TOKEN_TYPES[code], mode="r")


@torch.inference_mode()
def validation_loss(model: PreTrainedModel, prefix: Path, sequence_length: int, batch: int = 16) -> float:
    """Mean cross-entropy in nats over every full sample: sample i is tokens [i*S, i*S + S], each token predicting the one after it."""
    tokens = read_tokens(prefix)
    samples = (len(tokens) - 1) // sequence_length
    total = 0.0
    for first in range(0, samples, batch):
        rows = [tokens[i * sequence_length : (i + 1) * sequence_length + 1] for i in range(first, min(first + batch, samples))]
        ids = torch.from_numpy(numpy.stack(rows).astype(numpy.int64))
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        total += losses.double().sum().item()
    return total / (samples * sequence_length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="folder of the exported model")
    parser.add_argument("validation", type=Path, help="prefix of a .bin/.idx pair")
    parser.add_argument("--sequence-length", type=int, required=True)
    arguments = parser.parse_args()
    print(f"{validation_loss(load(arguments.export), arguments.validation, arguments.sequence_length):.7f}")


if __name__ == "__main__":
    main()

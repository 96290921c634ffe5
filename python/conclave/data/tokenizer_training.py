"""Training a byte-level BPE tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from conclave.data.cutting import pieces_of
from conclave.data.errors import DataError
from conclave.data.inputs import Inputs, ReadOptions, list_inputs
from conclave.data.left_out import Flaw, LeftOut
from conclave.data.long_text import LONG_BYTES
from conclave.data.outputs import check_outputs, write_whole
from conclave.data.tokenizer import END_OF_TEXT
from conclave.printable import printable

SMALLEST_VOCABULARY = 257  # all bytes and the end-of-text token
LARGEST_VOCABULARY = 1 << 22  # the library reserves memory for all of it; known models end at a million
_LINE_BEGINS = re.compile(r"(?<=\S\n)(?=\S)")  # where byte-level BPE joins nothing


@dataclass
class Training:
    """What a tokenizer was trained on."""

    vocab_size: int = 0
    documents: int = 0
    characters: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)


def train_tokenizer(
    inputs: Sequence[str],
    output: Path,
    vocab_size: int,
    options: ReadOptions = ReadOptions(),
    overwrite: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> Training:
    """Trains a byte-level BPE and writes `output` (".../tokenizer.json").

    Beside it comes the `tokenizer_config.json` with which Transformers' `AutoTokenizer` loads the folder. The
    end-of-text token has id 0. The same input gives the same file.

    Raises:
        DataError: the size of the vocabulary is impossible, the output has another name or is there already, or the
            inputs cannot be read.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"--vocab-size {vocab_size} is too small: 256 bytes and {END_OF_TEXT} take {SMALLEST_VOCABULARY}"
        )
    if vocab_size > LARGEST_VOCABULARY:
        raise DataError(f"--vocab-size {vocab_size} is too large: at most {LARGEST_VOCABULARY:,}")
    if output.name != "tokenizer.json":
        raise DataError(
            f"--output {printable(output)}: the file must be named tokenizer.json, or Transformers does not find it"
        )
    config_file = output.with_name("tokenizer_config.json")
    check_outputs([output, config_file], overwrite)
    found = list_inputs(inputs, options)
    for line in found.report():
        say(line)
    training = Training(left_out=LeftOut(options.strict))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(found, options, training), trainer)
    if not training.documents:
        raise DataError(f"no text in {', '.join(map(printable, inputs))}: {training.left_out.summary()}")
    training.vocab_size = tokenizer.get_vocab_size()
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    write_whole(config_file, json.dumps(config, indent=2) + "\n")
    write_whole(output, tokenizer.to_str(pretty=True))
    return training


def _texts(found: Inputs, options: ReadOptions, training: Training) -> Iterator[str]:
    with tqdm(total=found.bytes, unit="B", unit_scale=True, desc="reading", disable=None) as bar:
        for piece in pieces_of(found, options):
            for content, place in piece.documents(training.left_out):
                if isinstance(content, str):
                    training.documents += 1
                    training.characters += len(content)
                    yield from _parts(content)
                else:
                    training.left_out.add(Flaw("token ids, of which no tokenizer is made"), place)
            bar.update(piece.weight)


def _parts(text: str) -> Iterator[str]:
    """A long text in parts, which have the same words as the whole."""
    begin = 0
    while len(text) - begin > LONG_BYTES and (found := _LINE_BEGINS.search(text, begin + LONG_BYTES)):
        yield text[begin : found.start()]
        begin = found.start()
    yield text[begin:] if begin else text

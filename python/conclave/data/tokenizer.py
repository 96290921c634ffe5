"""Tokenizers: training a byte-level BPE, and opening any `tokenizer.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from conclave.data.documents import ReadOptions, Skipped, documents_of, pieces_of
from conclave.data.errors import DataError

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # all bytes and the end-of-text token
KNOWN_END_TOKENS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")


def open_tokenizer(path: Path) -> Tokenizer:
    """A `tokenizer.json`, or the one in a folder, set to encode whole texts as they are.

    Text that spells a special token ("</s>") is encoded as ordinary text, so that no document can end itself.

    Raises:
        DataError: the file is missing or no tokenizer.
    """
    file = tokenizer_file(path)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception for everything
        raise DataError(f"{file} is no tokenizer of the `tokenizers` library: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenizer_file(path: Path) -> Path:
    """The `tokenizer.json` that a path to it, or to its folder, means."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"{file} does not exist. Take the tokenizer.json of the model you train, or make one: "
            "python -m conclave.data train-tokenizer INPUT --output tokenizer.json"
        )
    return file


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the highest id: what a model's vocab_size must be at least."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def end_token(tokenizer: Tokenizer, path: Path, asked: str | None) -> str | None:
    """The token that ends a document: the one asked for, else `eos_token` of the `tokenizer_config.json` beside the
    tokenizer, else a well-known one of its vocabulary, else none.

    Raises:
        DataError: the vocabulary does not hold the token asked for.
    """
    if asked is not None:
        if tokenizer.token_to_id(asked) is None:
            raise DataError(f"--eos-token {asked!r} is not in the vocabulary of {tokenizer_file(path)}")
        return asked
    config_file = tokenizer_file(path).with_name("tokenizer_config.json")
    if config_file.is_file():
        try:
            configured = json.loads(config_file.read_text(encoding="utf-8")).get("eos_token")
        except (ValueError, AttributeError) as error:
            raise DataError(
                f"{config_file} is no JSON object ({error}). Mend it, or name the token with --eos-token"
            ) from None
        token = configured.get("content") if isinstance(configured, dict) else configured
        if isinstance(token, str) and tokenizer.token_to_id(token) is not None:
            return token
    return next((token for token in KNOWN_END_TOKENS if tokenizer.token_to_id(token) is not None), None)


def train_tokenizer(
    inputs: Sequence[str], output: Path, vocab_size: int, options: ReadOptions = ReadOptions()
) -> tuple[Tokenizer, Skipped]:
    """Trains a byte-level BPE and writes `output` (".../tokenizer.json").

    Beside it comes the `tokenizer_config.json` with which Transformers' `AutoTokenizer` loads the folder. The
    end-of-text token has id 0. The same input gives the same file.

    Raises:
        DataError: the vocabulary is too small for all bytes, the output has another name, or the inputs cannot be read.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"--vocab-size {vocab_size} is too small: 256 bytes and {END_OF_TEXT} take {SMALLEST_VOCABULARY}"
        )
    if output.name != "tokenizer.json":
        raise DataError(f"--output {output}: the file must be named tokenizer.json, or Transformers does not find it")
    pieces = pieces_of(inputs, options)
    skipped = Skipped()

    def texts() -> Iterator[str]:
        total = sum(piece.end - piece.begin for piece in pieces)
        with tqdm(total=total, unit="B", unit_scale=True, desc="reading", disable=None) as bar:
            for piece in pieces:
                yield from documents_of(piece, skipped)
                bar.update(piece.end - piece.begin)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    _write(output.with_name("tokenizer_config.json"), json.dumps(config, indent=2) + "\n")
    _write(output, tokenizer.to_str(pretty=True))
    return tokenizer, skipped


def _write(path: Path, content: str) -> None:
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)

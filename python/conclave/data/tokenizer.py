"""Any `tokenizer.json`: opened, looked at, and used, with the library's failures told as ours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from conclave.data.errors import DataError
from conclave.printable import printable, shortened

END_OF_TEXT = "<|endoftext|>"
MOST_IDS = 2**31 - 1  # token files hold ids in 32 bits with a sign
_KNOWN_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")
_KNOWN_BEGINS = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")
_SAMPLE = "A sample, 1 of 2:\n\tna\u00efve \u6587\u5b57 \U0001f408  end\n"


@dataclass(frozen=True)
class SpecialToken:
    """A token that stands before or behind a document."""

    name: str
    id: int


@dataclass(frozen=True)
class TokenizerFacts:
    """What a build must know of a tokenizer before it starts."""

    vocab_size: int  # one more than the highest id: what a model's vocab_size must be at least
    begin: SpecialToken | None
    end: SpecialToken | None
    drops_characters: bool  # characters that the vocabulary does not know leave no token


def tokenizer_file(path: Path) -> Path:
    """The `tokenizer.json` that a path to it, or to its folder, means.

    Raises:
        DataError: there is none.
    """
    try:
        file = path / "tokenizer.json" if path.is_dir() else path
        if file.is_file():
            return file
        there = file.exists()
    except (OSError, ValueError) as error:
        raise DataError(f"{printable(path)} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    raise DataError(
        f"{printable(file)} {'is no regular file' if there else 'does not exist'}. Take the tokenizer.json of the model "
        "you train, or make one: conclave data train-tokenizer INPUT --output tokenizer.json"
    )


class OpenTokenizer:
    """A tokenizer set to encode whole texts as they are.

    Text that spells a special token ("</s>") is encoded as ordinary text, so that no document can end itself. Nothing
    is cut, filled up or left to chance.

    Attributes:
        file: the tokenizer.json.
        where: the text that is encoded, as errors name it.

    Raises:
        DataError: the file is no tokenizer. When it encodes: the library fails.
    """

    def __init__(self, path: Path) -> None:
        self.file = tokenizer_file(path)
        self.where: object = "a text"
        try:
            self._tokenizer = Tokenizer.from_buffer(self.file.read_bytes())
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._tokenizer.encode_special_tokens = True
            if getattr(self._tokenizer.model, "dropout", None):
                self._tokenizer.model.dropout = None
        except OSError as error:
            raise DataError.of_file(self.file, error) from None
        except BaseException as error:
            _pass_on(error)
            raise DataError(
                f"{printable(self.file)} is no tokenizer of the `tokenizers` library, or damaged: {shortened(error)}"
            ) from None

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """The ids of a text."""
        try:
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
            return np.array(encoding.ids, dtype=np.uint32)
        except BaseException as error:
            raise self._failure(error) from None

    def encode_with_spans(self, text: str) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Ids, and [N, 2]: where the characters of each token begin and end. Slower."""
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            return np.array(encoding.ids, dtype=np.uint32), np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        except BaseException as error:
            raise self._failure(error) from None

    def _failure(self, error: BaseException) -> DataError:
        _pass_on(error)
        remedy = "The tokenizer is damaged"
        if "unk" in str(error).lower():
            remedy = "It has no unknown token, so it must know every character: name one as unk_token in its model"
        return DataError(f"{printable(self.file)} cannot encode {self.where}: {shortened(error)}. {remedy}")

    def id_of(self, token: str) -> int | None:
        if not token.isprintable():  # such as a byte of the command line that is not UTF-8
            return None
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def vocab_size(self) -> int:
        """One more than the highest id.

        Raises:
            DataError: there is no token, or an id does not fit into a token file.
        """
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise DataError(f"{printable(self.file)} has an empty vocabulary: it makes no tokens")
        if max(ids) > MOST_IDS:
            raise DataError(f"{printable(self.file)} has a token of id {max(ids)}; token files hold ids up to {MOST_IDS}")
        return max(ids) + 1

    def drops_characters(self) -> bool:
        """Whether characters that the vocabulary does not know vanish, as in a BPE without bytes and unknown token."""
        model = json.loads(self._tokenizer.to_str()).get("model", {})
        unknown = "\ufdd0"  # a code that is no letter in any script, hence in no vocabulary
        return model.get("type") == "BPE" and not len(self.encode(unknown))


def look_at(path: Path, begin: str | None, end: str | None) -> TokenizerFacts:
    """The facts of a tokenizer; `begin` and `end` name tokens of it, "" stands for its own, None for no token.

    Raises:
        DataError: the tokenizer is damaged, or has no such token.
    """
    tokenizer = OpenTokenizer(path)
    size = tokenizer.vocab_size()
    try:
        tokenizer.encode(_SAMPLE)
    except DataError as error:
        if "unknown token" not in str(error):  # of documents that it knows it may yet encode all characters
            raise
    found_begin = None if begin is None else _special(tokenizer, begin, "bos", _KNOWN_BEGINS)
    if begin is not None and found_begin is None:
        raise DataError(f"{printable(tokenizer.file)} has no token that begins a text. --bos-token names one")
    return TokenizerFacts(
        size, found_begin, None if end is None else _special(tokenizer, end, "eos", _KNOWN_ENDS), tokenizer.drops_characters()
    )


def _special(tokenizer: OpenTokenizer, asked: str, kind: str, known: tuple[str, ...]) -> SpecialToken | None:
    """The token asked for, else the one that `tokenizer_config.json` names, else a well-known one, else none."""
    if asked:
        if (number := tokenizer.id_of(asked)) is None:
            raise DataError(
                f"--{kind}-token {shortened(asked)!r} is not in the vocabulary of {printable(tokenizer.file)}"
            )
        return SpecialToken(asked, number)
    for name in (_configured(tokenizer.file.with_name("tokenizer_config.json"), kind), *known):
        if name is not None and (number := tokenizer.id_of(name)) is not None:
            return SpecialToken(name, number)
    return None


def _configured(file: Path, kind: str) -> str | None:
    if not file.is_file():
        return None
    try:
        config: Any = json.loads(file.read_bytes())
        token = config.get(f"{kind}_token")
    except OSError as error:
        raise DataError.of_file(file, error) from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{printable(file)} is no JSON object ({shortened(error, 80)}). Mend it, or name the token with --{kind}-token"
        ) from None
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) else None


def _pass_on(error: BaseException) -> None:
    """Raises what is none of the library's failures. Those are plain exceptions, and panics, which derive from none."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, DataError)):
        raise error

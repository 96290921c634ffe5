"""What a worker process does: documents to tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from conclave.data.chat_template import AmbiguousTurns, ChatTemplate, TrainOn
from conclave.data.chats import Chat
from conclave.data.content import Ids
from conclave.data.errors import DataError
from conclave.data.left_out import Flaw, LeftOut, Place
from conclave.data.long_text import LONG_BYTES, TextInMemory, TextOnDisk, encode_long, encode_part, parts_of
from conclave.data.pieces import Piece, TextPart, UnusableText
from conclave.data.tokenizer import OpenTokenizer


@dataclass(frozen=True)
class ChatRules:
    """How chats become tokens.

    Attributes:
        template: a file with the chat template; None: the tokenizer's own.
        train_on: the assistant's turns, its last one, or all tokens.
        max_tokens: longer chats are left out, or cut at their end; None: none is.
        cut: which of the two.
    """

    template: Path | None = None
    train_on: TrainOn = "assistant"
    max_tokens: int | None = None
    cut: bool = False


@dataclass(frozen=True)
class Rules:
    """How documents become tokens.

    Attributes:
        tokenizer: its file; None: there are only token ids.
        dtype: of the tokens.
        vocab_size: ids are below it.
        begin, end: ids in front of each document and behind each text.
        end_ids: whether they stand behind documents of token ids, too.
        strict: whether a document that cannot be used ends the work.
        chats: the rules of chats; None: there are none.
    """

    tokenizer: Path | None
    dtype: np.dtype
    vocab_size: int
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    end_ids: bool = False
    strict: bool = False
    chats: ChatRules | None = None

    @property
    def masked(self) -> bool:
        """Whether some tokens are not trained on."""
        return self.chats is not None and self.chats.train_on != "all"


@dataclass
class Tokenized:
    """Tokens of documents, one behind the other, and their lengths; of a `TextPart`, its tokens.

    `inseparable`: a part cannot be told from the one before it. `mask`: of each token, whether it is trained on; None:
    all are.
    """

    tokens: npt.NDArray[np.integer]
    lengths: list[int]
    left_out: LeftOut
    inseparable: bool = False
    mask: npt.NDArray[np.uint8] | None = None


def tokenize(rules: Rules, pieces: Sequence[Piece]) -> Tokenized:
    """The documents of pieces, or one part of a document."""
    left_out = LeftOut(rules.strict)
    if isinstance(pieces[0], TextPart):
        tokens = _tokens_of_part(rules, pieces[0])
        return Tokenized(np.zeros(0, rules.dtype) if tokens is None else tokens, [], left_out, tokens is None)
    parts: list[npt.NDArray[np.integer]] = []
    masks: list[npt.NDArray[np.uint8]] = []
    for piece in pieces:
        for content, place in piece.documents(left_out):
            try:
                if isinstance(content, Chat):
                    ids, mask = _chat_ids(rules, content, left_out)
                    parts.append(ids)
                    masks.append(mask)
                    continue
                ids = _ids(rules, content, place)
            except Flaw as flaw:
                left_out.add(flaw, place)
                continue
            if len(ids):
                end = rules.end if isinstance(content, str) or rules.end_ids else ()
                parts.append(_framed(rules, ids, rules.begin, end))
            else:
                left_out.empty += 1
    tokens = np.concatenate(parts) if parts else np.zeros(0, rules.dtype)
    mask = np.concatenate([np.zeros(0, np.uint8), *masks]) if rules.masked else None
    return Tokenized(tokens, [len(part) for part in parts], left_out, mask=mask)


def check_template(tokenizer: Path, chats: ChatRules) -> None:
    """Opens the chat template and tries it.

    Raises:
        DataError: it cannot be used.
    """
    _template_of(tokenizer, chats.template).check(chats.train_on)


def survey(rules: Rules, path: Path, size: int) -> list[Piece]:
    """A long text as its parts, if it can be used."""
    text = TextOnDisk(path, size)
    try:
        if not text.check():
            return [UnusableText(path, size, None)]
    except Flaw as flaw:
        return [UnusableText(path, size, flaw)]
    limits = parts_of(text, _tokenizer_of(rules, Place(path)))
    return [TextPart(path, end - begin, begin, end, size, begin == text.begin) for begin, end in limits]


def _tokens_of_part(rules: Rules, part: TextPart) -> npt.NDArray[np.integer] | None:
    ids = encode_part(TextOnDisk(part.path, part.size), part.begin, part.end, _tokenizer_of(rules, Place(part.path)))
    if ids is None:
        return None
    return _framed(rules, ids, rules.begin if part.first else (), rules.end if part.last else ())


def _chat_ids(rules: Rules, chat: Chat, left_out: LeftOut) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.uint8]]:
    """Its tokens, and which of them are trained on."""
    assert rules.chats is not None and rules.tokenizer is not None
    try:
        found = _template_of(rules.tokenizer, rules.chats.template).encode(chat, rules.chats.train_on)
    except AmbiguousTurns as reason:
        raise Flaw(f"the chat template does not say where the assistant's turns are: {reason}") from None
    ids, mask = found.ids, np.ones(len(found.ids), np.uint8) if found.mask is None else found.mask
    most = rules.chats.max_tokens
    if most is not None and len(ids) > most:
        if not rules.chats.cut:
            raise Flaw(f"longer than --max-tokens {most:,}", f"it has {len(ids):,} tokens")
        ids, mask = ids[:most], mask[:most]
        if not mask.any():
            raise Flaw(f"nothing to train on in its first {most:,} tokens")
        left_out.cut += 1
    if not len(ids):
        raise Flaw("the chat template makes nothing of it")
    if ids.max() >= rules.vocab_size:
        raise Flaw(f"a token id outside of the vocabulary of {rules.vocab_size:,}", f"it is {ids.max()}")
    return ids.astype(rules.dtype), mask


def _ids(rules: Rules, content: str | Ids, place: Place) -> npt.NDArray[np.integer]:
    if not isinstance(content, str):
        if content.min() < 0 or content.max() >= rules.vocab_size:
            wrong = content[(content < 0) | (content >= rules.vocab_size)][0]
            raise Flaw(f"a token id outside of the vocabulary of {rules.vocab_size:,}", f"it is {wrong}")
        return content.astype(rules.dtype)
    tokenizer = _tokenizer_of(rules, place)
    if len(content) <= LONG_BYTES:
        return tokenizer.encode(content).astype(rules.dtype)
    return np.concatenate([part.astype(rules.dtype) for part in encode_long(TextInMemory(content), tokenizer)])


def _framed(
    rules: Rules, ids: npt.NDArray[np.integer], begin: tuple[int, ...], end: tuple[int, ...]
) -> npt.NDArray[np.integer]:
    return np.concatenate([np.array(begin, rules.dtype), ids.astype(rules.dtype), np.array(end, rules.dtype)])


def _tokenizer_of(rules: Rules, place: Place) -> OpenTokenizer:
    if rules.tokenizer is None:
        raise DataError(f"{place} holds a text: give the tokenizer that encodes it, --tokenizer FILE")
    tokenizer = _opened(rules.tokenizer)
    tokenizer.where = place
    return tokenizer


@functools.cache
def _opened(path: Path) -> OpenTokenizer:
    return OpenTokenizer(path)


@functools.cache
def _template_of(tokenizer: Path, template: Path | None) -> ChatTemplate:
    return ChatTemplate(tokenizer, template)

"""Long texts, encoded part by part: the tokens are those of the whole text, the memory is that of a part.

A part ends where the tokenizer joins nothing: between lines or words, at a place where one token ends and another begins,
and where the text before it has the same tokens whether or not the text behind follows. This is tried at each cut with
the tokenizer itself, on stretches of two lengths. A part is then encoded together with the end of the part before it,
whose tokens are dropped; so whatever a
tokenizer does at the beginning of a text (such as putting a space there) is not done at a cut. When no such place is
found a part grows, at last to the whole text.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from conclave.data.content import BYTE_ORDER_MARK, HOLDS_NUL, NOT_UTF8
from conclave.data.errors import DataError
from conclave.data.left_out import Flaw

LONG_BYTES = 1 << 20  # longer texts are encoded in parts
PART_BYTES = 1 << 19
CONTEXTS = (256, 4096)  # bytes on each side of a cut on which it is tried
_SEARCHED_BYTES = 1 << 16  # in which a place for a cut is looked for
_TRIES = 4  # places of each kind
_BLOCK = 1 << 20

# Before a line, before a word, and before a sign that ends a sentence in scripts without spaces.
_PLACES = (
    re.compile(rb"(?<=[^\s]\n)(?=[^\s\x80-\xbf])"),
    re.compile(rb"(?<=[0-9A-Za-z]) (?=[0-9A-Za-z])"),
    re.compile(rb"(?=(?:%s))" % "|".join("。！？，").encode()),
)

Ids = npt.NDArray[np.integer]


class Encoder(Protocol):
    """What is asked of a tokenizer."""

    def encode(self, text: str) -> Ids: ...

    def encode_with_spans(self, text: str) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids, and [N, 2]: where the characters of each token begin and end."""
        ...


class Text(Protocol):
    """Bytes in UTF-8 of which any range can be read."""

    begin: int
    end: int

    def read(self, begin: int, end: int) -> bytes: ...


class TextInMemory:
    """A text that is here."""

    def __init__(self, text: str) -> None:
        self._bytes = text.encode("utf-8")
        self.begin = 0
        self.end = len(self._bytes)

    def read(self, begin: int, end: int) -> bytes:
        return self._bytes[begin:end]


class TextOnDisk:
    """A file, behind its byte order mark if it has one. It is opened for each range, so it may pass to other processes."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self.begin = 0
        self.end = size
        self.begin = len(BYTE_ORDER_MARK) if self.read(0, 3) == BYTE_ORDER_MARK else 0

    def read(self, begin: int, end: int) -> bytes:
        try:
            with open(self._path, "rb") as file:
                file.seek(begin)
                content = file.read(end - begin)
        except OSError as error:
            raise DataError.of_file(self._path, error) from None
        if len(content) != end - begin:
            raise DataError.changed(self._path)
        return content

    def check(self) -> bool:
        """Whether there is more than white space in it.

        Raises:
            Flaw: it is not UTF-8, or binary.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        blank = True
        for begin in range(self.begin, self.end, _BLOCK):
            end = min(begin + _BLOCK, self.end)
            block = self.read(begin, end)
            if (nul := block.find(0)) >= 0:
                raise Flaw(HOLDS_NUL, byte=begin + nul)
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=end == self.end)
            except UnicodeDecodeError as error:
                raise Flaw(NOT_UTF8, byte=begin - waiting + error.start) from None
            blank = blank and not text.strip()
        return not blank


def parts_of(text: Text, encoder: Encoder) -> list[tuple[int, int]]:
    """The bytes at which each part begins and ends."""
    parts: list[tuple[int, int]] = []
    begin, wanted = text.begin, PART_BYTES
    while begin + wanted + PART_BYTES // 2 < text.end:
        cut = _cut_near(text, begin + wanted, encoder)
        if cut is None:
            wanted *= 2  # so that a text without such places costs a few tries, not many
        else:
            parts.append((begin, cut))
            begin, wanted = cut, PART_BYTES
    return [*parts, (begin, text.end)]


def encode_part(text: Text, begin: int, end: int, encoder: Encoder) -> Ids | None:
    """The tokens of bytes [begin, end), which begin and end at cuts. None: `begin` is no place for a cut after all."""
    if begin == text.begin:
        return encoder.encode(_decoded(text, begin, end))
    before = _decoded(text, _letter_at(text, begin - CONTEXTS[-1]), begin)
    head, both = encoder.encode(before), encoder.encode(before + _decoded(text, begin, end))
    return both[len(head) :] if np.array_equal(both[: len(head)], head) else None


def encode_long(text: Text, encoder: Encoder) -> list[Ids]:
    """The tokens of a long text, part by part."""
    parts = []
    for begin, end in parts_of(text, encoder):
        part = encode_part(text, begin, end, encoder)
        if part is None:
            return [encoder.encode(_decoded(text, text.begin, text.end))]
        parts.append(part)
    return parts


def _cut_near(text: Text, at: int, encoder: Encoder) -> int | None:
    window = text.read(at, min(at + _SEARCHED_BYTES, text.end))
    for places in _PLACES:
        for _, found in zip(range(_TRIES), places.finditer(window), strict=False):
            cut = at + found.start()
            if all(_holds(text, cut, context, encoder) for context in CONTEXTS):
                return cut
    return None


def _holds(text: Text, cut: int, context: int, encoder: Encoder) -> bool:
    """Whether no token lies over the cut, and the text before it has the same tokens with and without what follows."""
    before = _decoded(text, _letter_at(text, cut - context), cut)
    behind = _decoded(text, cut, _letter_at(text, cut + context))
    head = encoder.encode(before)
    both, spans = encoder.encode_with_spans(before + behind)
    apart = (spans[: len(head), 1] <= len(before)).all() and (spans[len(head) :, 0] >= len(before)).all()
    return bool(apart) and np.array_equal(both[: len(head)], head)


def _letter_at(text: Text, byte: int) -> int:
    """The first byte from this one on at which a letter begins."""
    byte = min(max(byte, text.begin), text.end)
    for value in text.read(byte, min(byte + 4, text.end)):
        if value & 0xC0 != 0x80:
            break
        byte += 1
    return byte


def _decoded(text: Text, begin: int, end: int) -> str:
    return text.read(begin, end).decode("utf-8")

"""Pieces of the input that any process can read alone, and the documents in them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conclave.data.content import Content, text_of
from conclave.data.errors import DataError
from conclave.data.left_out import Flaw, LeftOut, Place
from conclave.data.readers import Reader


@dataclass(frozen=True)
class Piece:
    """Whole documents of one file.

    Attributes:
        path: the file.
        weight: how many of its bytes the piece stands for, for the progress bar.
    """

    path: Path
    weight: int

    def documents(self, left_out: LeftOut) -> Iterator[tuple[Content, Place]]:
        """The documents that can be used, exactly as they are in the file. The others are noted in `left_out`."""
        for place, source in self._sources():
            try:
                content = self._content(source)
            except Flaw as flaw:
                if flaw.byte is not None:
                    place = Place(place.path, (place.byte or 0) + flaw.byte, place.line)
                left_out.add(flaw, place)
                continue
            if isinstance(content, str) and not content.strip() or not len(content):
                left_out.empty += 1
                continue
            yield content, place

    def _sources(self) -> Iterator[tuple[Place, Any]]:
        raise NotImplementedError

    def _content(self, source: Any) -> Content:
        raise NotImplementedError


@dataclass(frozen=True)
class TextFile(Piece):
    """A file that is one document."""

    def _sources(self) -> Iterator[tuple[Place, bytes]]:
        yield Place(self.path), _read(self.path, 0, self.weight)

    def _content(self, source: bytes) -> Content:
        return text_of(source)


@dataclass(frozen=True)
class TextPart(Piece):
    """Bytes [begin, end) of a text of `size` bytes, which may be encoded apart from the others (see `long_text`)."""

    begin: int
    end: int
    size: int
    first: bool

    @property
    def last(self) -> bool:
        return self.end == self.size


@dataclass(frozen=True)
class UnusableText(Piece):
    """A long text that was looked at: it is empty, or has a flaw."""

    flaw: Flaw | None

    def _sources(self) -> Iterator[tuple[Place, None]]:
        yield Place(self.path), None

    def _content(self, source: None) -> Content:
        if self.flaw is not None:
            raise self.flaw
        return ""


@dataclass(frozen=True)
class TextParagraphs(Piece):
    """Bytes from `begin` on of a text file with blank lines between its documents."""

    begin: int

    def _sources(self) -> Iterator[tuple[Place, bytes]]:
        begin = offset = self.begin
        lines: list[bytes] = []  # of a document that began at `begin`
        for line in io.BytesIO(_read(self.path, self.begin, self.weight)):
            if not lines:
                begin = offset
            offset += len(line)
            if line.strip():
                lines.append(line)
            elif lines:
                yield Place(self.path, begin), b"".join(lines)
                lines = []
        if lines:
            yield Place(self.path, begin), b"".join(lines)

    def _content(self, source: bytes) -> Content:
        return text_of(source)


@dataclass(frozen=True)
class JsonLines(Piece):
    """Bytes from `begin` on of a file with a JSON object a line."""

    begin: int
    reader: Reader

    def _sources(self) -> Iterator[tuple[Place, bytes]]:
        offset = self.begin
        for line in io.BytesIO(_read(self.path, self.begin, self.weight)):
            if line.strip():
                yield Place(self.path, offset), line
            offset += len(line)

    def _content(self, source: bytes) -> Content:
        return self.reader.of_json(source)


@dataclass(frozen=True)
class JsonObjects(Piece):
    """JSON objects that were read from a stream, with their lines and bytes in it."""

    objects: tuple[tuple[int, int, bytes], ...]
    reader: Reader

    def _sources(self) -> Iterator[tuple[Place, bytes]]:
        for line, byte, raw in self.objects:
            yield Place(self.path, byte, line), raw

    def _content(self, source: bytes) -> Content:
        return self.reader.of_json(source)


@dataclass(frozen=True)
class Rows(Piece):
    """Rows of a table: of a column its values (bytes of a text, ids, or None), of several a dictionary each."""

    first_row: int
    values: tuple[Any, ...]
    reader: Reader

    def _sources(self) -> Iterator[tuple[Place, Any]]:
        for number, value in enumerate(self.values, self.first_row):
            yield Place(self.path, row=number), value

    def _content(self, source: Any) -> Content:
        return self.reader.of_row(source)


def _read(path: Path, begin: int, count: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(begin)
            content = file.read(count)
    except OSError as error:
        raise DataError.of_file(path, error) from None
    if len(content) != count:
        raise DataError.changed(path)
    return content

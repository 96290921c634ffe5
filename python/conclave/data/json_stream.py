"""JSON objects of files that cannot be cut into pieces before they are read: compressed ones, and arrays."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conclave.data.content import BYTE_ORDER_MARK
from conclave.data.errors import DataError
from conclave.data.formats import Format, Kind
from conclave.data.pieces import JsonObjects
from conclave.data.readers import Reader
from conclave.printable import printable

PIECE_BYTES = 1 << 20  # objects that travel to a process together
_COMPRESSED_BLOCK = 1 << 13  # small: a block of zeros may grow by a factor of 30,000
_BLOCK = 1 << 16
_WHITE = b" \t\r\n"

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_BETWEEN = re.compile(_STRING + rb'|["\[\]{},]', re.DOTALL)  # what matters outside of objects
_WITHIN = re.compile(_STRING + rb'|["\[\]{}]', re.DOTALL)  # what matters in one

Found = tuple[int, int, bytes]  # line from 1, byte, the object's bytes


def json_pieces(path: Path, form: Format, reader: Reader) -> Iterator[JsonObjects]:
    """All objects of a file, some at a time.

    Raises:
        DataError: the compressed stream or the array is damaged or cut, or the file holds neither an array nor lines.
    """
    source = _Source(path, form.compression)
    objects: list[Found] = []
    size = told = 0
    for found in _objects(source, form.kind):
        objects.append(found)
        size += len(found[2])
        if size >= PIECE_BYTES:
            yield JsonObjects(path, source.position - told, tuple(objects), reader)
            objects, size, told = [], 0, source.position
    yield JsonObjects(path, source.position - told, tuple(objects), reader)


def _objects(source: _Source, kind: Kind) -> Iterator[Found]:
    source.more()
    while not source.buffer.removeprefix(BYTE_ORDER_MARK).lstrip(_WHITE) and source.more():
        pass
    content = source.buffer.removeprefix(BYTE_ORDER_MARK).lstrip(_WHITE)
    if kind is Kind.JSON and content.startswith(b"["):
        yield from _elements(source, len(source.buffer) - len(content) + 1)
        return
    if kind is Kind.JSON:
        _refuse_one_object(source, content)
    yield from _lines(source)


def _refuse_one_object(source: _Source, content: bytes) -> None:
    """A `.json` file that is no array must hold an object a line."""
    first = content.partition(b"\n")[0].strip()
    if first in (b"{", b'{"') or (content and not content.startswith(b"{")):
        raise DataError(
            f"{printable(source.path)} holds neither an array of documents nor one document a line. Make it one of "
            "these, or leave such files out: --ignore .json"
        )


class _Source:
    """A file's bytes, decompressed block by block into `buffer`, which starts at byte `offset` of them."""

    def __init__(self, path: Path, compression: str) -> None:
        self.path = path
        self.buffer = b""
        self.offset = 0
        self.line = 1  # in which the buffer starts
        self.position = 0  # bytes of the file that were read
        self._blocks = _decompressed(self, compression)

    def more(self) -> bool:
        """Adds a block, or as much again as the buffer holds, so that long objects are looked at a few times only."""
        wanted = max(_BLOCK, len(self.buffer))
        blocks = []
        while wanted > 0 and (block := next(self._blocks, None)) is not None:
            blocks.append(block)
            wanted -= len(block)
        self.buffer = b"".join([self.buffer, *blocks])
        return bool(blocks)

    def drop(self, count: int) -> None:
        """Forgets the first bytes of the buffer."""
        self.line += self.buffer.count(b"\n", 0, count)
        self.offset += count
        self.buffer = self.buffer[count:]


def _lines(source: _Source) -> Iterator[Found]:
    while True:
        end = source.buffer.rfind(b"\n") + 1
        line, byte = source.line, source.offset
        for raw in source.buffer[:end].split(b"\n")[:-1]:
            if raw.strip():
                yield line, byte, raw
            line += 1
            byte += len(raw) + 1
        source.drop(end)
        if not source.more():
            break
    if source.buffer.strip():
        yield source.line, source.offset, source.buffer


def _elements(source: _Source, at: int) -> Iterator[Found]:
    """The elements of an array, whatever is wrong inside of them."""
    source.drop(at)
    at = depth = 0
    while True:
        found = (_WITHIN if depth else _BETWEEN).search(source.buffer, at)
        if found is None or found[0] == b'"':  # a string that does not end here
            at = len(source.buffer) if found is None else found.start()
            if source.more():
                continue
            raise DataError(f"{printable(source.path)} is cut: its array does not end. Copy it again, or leave it out")
        at = found.end()
        if found[0] in (b"[", b"{"):
            depth += 1
        elif depth and found[0] in (b"]", b"}"):
            depth -= 1
        elif found[0] in (b",", b"]"):
            if found[0] == b"," or source.buffer[: at - 1].strip():
                yield _element(source, at - 1)
            source.drop(at)
            if found[0] == b"]":
                break
            at = 0
    while not source.buffer.strip() and source.more():
        pass
    if source.buffer.strip():
        raise DataError(f"{printable(source.path)} goes on behind its array, at byte {source.offset}. Make it one array")


def _element(source: _Source, end: int) -> Found:
    raw = source.buffer[:end]
    blank = len(raw) - len(raw.lstrip(_WHITE))
    return source.line + raw.count(b"\n", 0, blank), source.offset + blank, raw[blank:]


def _decompressed(source: _Source, compression: str) -> Iterator[bytes]:
    name = printable(source.path)
    try:
        with open(source.path, "rb") as file:
            if not compression:
                while block := file.read(_BLOCK):
                    source.position += len(block)
                    yield block
                return
            machine: Any = None
            rest = b""
            while block := rest or file.read(_COMPRESSED_BLOCK):
                if machine is None:
                    if source.position and compression == ".gz":
                        block = block.lstrip(b"\0")  # padding behind a member
                    machine = _decompressor(compression) if block else None
                source.position = file.tell()
                content = machine.decompress(block) if machine else b""
                ended = machine is not None and machine.eof
                rest = machine.unused_data if ended else b""
                machine = None if ended else machine
                if content:
                    yield content
    except OSError as error:
        raise DataError.of_file(source.path, error) from None
    except _damage(compression) as error:
        raise DataError(f"{name} is damaged: byte {source.position} or before it is no {compression} data") from error
    if machine is not None:
        raise DataError(f"{name} is cut: its {compression} data does not end. Copy it again, or leave it out")


def _decompressor(compression: str) -> Any:
    if compression == ".gz":
        return zlib.decompressobj(wbits=31)
    return _zstandard().ZstdDecompressor(max_window_size=2**31).decompressobj()


def _damage(compression: str) -> type[Exception]:
    return zlib.error if compression != ".zst" else _zstandard().ZstdError


def _zstandard() -> Any:
    try:
        import zstandard
    except ModuleNotFoundError:
        raise DataError(
            "reading .zst files needs the Python package zstandard: pip install zstandard "
            "(the extra `data` of conclave brings it)"
        ) from None
    return zstandard

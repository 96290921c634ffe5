"""From the inputs a user names to the documents in them, in an order that is the same on every run.

Inputs are cut into pieces that any process can read alone, so that the text never passes between processes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from conclave.data.errors import DataError
from conclave.data.standard_library import KEYWORD, standard_library_files, standard_library_folder

TEXT_SUFFIXES = (".txt", ".py")
SUPPORTED_SUFFIXES = (*TEXT_SUFFIXES, ".jsonl")
PIECE_BYTES = 4 << 20  # a file that holds many documents is cut about every so many bytes


@dataclass(frozen=True)
class ReadOptions:
    """How inputs become documents.

    Attributes:
        json_key: the key of a `.jsonl` line that holds the document's text.
        split_on_blank_lines: a `.txt` file holds many documents with blank lines between them, instead of one.
        extra_suffixes: further suffixes (".md") of files that are one document each.
        order: of the files of a folder: by their path, or by a hash of it, so that the last ones are a fair sample.
    """

    json_key: str = "text"
    split_on_blank_lines: bool = False
    extra_suffixes: tuple[str, ...] = ()
    order: Literal["path", "hash"] = "path"


@dataclass(frozen=True)
class Piece:
    """Bytes [begin, end) of a file, with whole documents in them."""

    path: Path
    begin: int
    end: int
    kind: Literal["whole", "blank_lines", "json_lines"]
    json_key: str = "text"


@dataclass
class Skipped:
    """Documents that were left out, and why."""

    undecodable: list[str] = field(default_factory=list)  # not UTF-8: the files, or places in a file
    empty: int = 0  # no text but white space


def pieces_of(inputs: Sequence[str], options: ReadOptions) -> list[Piece]:
    """The pieces of all inputs: files, folders (recursively) and the keyword `stdlib`, in the order given.

    Raises:
        DataError: an input does not exist, has an unsupported suffix, or no document was found.
    """
    pieces: list[Piece] = []
    for name in inputs:
        for path in _files_of(name, options):
            pieces.extend(_cut(path, options))
    if not pieces:
        raise DataError(
            f"no documents in {', '.join(inputs)}. Supported: {' '.join(_suffixes(options))} (--suffix adds others)"
        )
    return pieces


def documents_of(piece: Piece, skipped: Skipped) -> Iterator[str]:
    """The texts of a piece, exactly as they are in the file. What is left out is noted in `skipped`.

    Raises:
        DataError: a line of a `.jsonl` file is no JSON object with a text under the key.
    """
    with open(piece.path, "rb") as file:
        file.seek(piece.begin)
        content = file.read(piece.end - piece.begin)
    for offset, raw in _raw_documents(piece, content):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            skipped.undecodable.append(
                str(piece.path) if piece.kind == "whole" else f"{piece.path}, byte {piece.begin + offset}"
            )
            continue
        if piece.kind == "json_lines":
            text = _text_of_json(text, f"{piece.path}, line at byte {piece.begin + offset}", piece.json_key)
        if not text.strip():
            skipped.empty += 1
            continue
        yield text


def _suffixes(options: ReadOptions) -> tuple[str, ...]:
    return (*SUPPORTED_SUFFIXES, *options.extra_suffixes)


def _files_of(name: str, options: ReadOptions) -> list[Path]:
    if name == KEYWORD:
        return _ordered(standard_library_files(), standard_library_folder(), "hash")
    path = Path(name)
    if path.is_dir():
        return _files_below(path, options)
    if not path.exists():
        raise DataError(
            f"{name} does not exist. Give files ({' '.join(_suffixes(options))}), folders, or the word {KEYWORD}"
        )
    if path.suffix not in _suffixes(options):
        raise DataError(
            f"{name}: files with suffix {path.suffix!r} are not read. Supported: {' '.join(_suffixes(options))}; "
            f"if it is plain text, add --suffix {path.suffix or '.txt'}"
        )
    return [path]


def _files_below(folder: Path, options: ReadOptions) -> list[Path]:
    found = [
        Path(parent, file)
        for parent, _, files in os.walk(folder)
        for file in files
        if Path(file).suffix in _suffixes(options) and Path(parent, file).is_file()
    ]
    return _ordered(found, folder, options.order)


def _ordered(files: list[Path], folder: Path, order: Literal["path", "hash"]) -> list[Path]:
    """Files by their path below the folder, or by a hash of it. Neither depends on where the folder is.

    By path, the last documents all come from what is late in the alphabet; by hash, any stretch is a fair sample.
    """

    def key(path: Path) -> tuple[bytes, str]:
        relative = path.relative_to(folder).as_posix()
        digest = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).digest() if order == "hash" else b""
        return digest, relative

    return sorted(files, key=key)


def _cut(path: Path, options: ReadOptions) -> Iterator[Piece]:
    size = path.stat().st_size
    if path.suffix == ".jsonl":
        kind: Literal["blank_lines", "json_lines"] = "json_lines"
    elif path.suffix == ".txt" and options.split_on_blank_lines:
        kind = "blank_lines"
    else:
        yield Piece(path, 0, size, "whole")
        return
    with open(path, "rb") as file:
        begin = 0
        while begin < size:
            file.seek(min(begin + PIECE_BYTES, size))
            line = file.readline()  # the rest of a line that may have begun before
            while kind == "blank_lines" and line and (line := file.readline()).strip():
                pass
            yield Piece(path, begin, file.tell(), kind, options.json_key)
            begin = file.tell()


def _raw_documents(piece: Piece, content: bytes) -> Iterator[tuple[int, bytes]]:
    """Each document's offset in the piece, and its bytes."""
    if piece.kind == "whole":
        yield 0, content
        return
    begin = offset = 0
    lines: list[bytes] = []  # of a document that began at `begin`
    for line in io.BytesIO(content):
        if not lines:
            begin = offset
        offset += len(line)
        if line.strip():
            lines.append(line)
        if lines and (piece.kind == "json_lines" or not line.strip()):
            yield begin, b"".join(lines)
            lines = []
    if lines:
        yield begin, b"".join(lines)


def _text_of_json(line: str, where: str, key: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error}). A .jsonl file holds one JSON object a line") from None
    if not isinstance(value, dict) or key not in value:
        there = f"its keys are {', '.join(map(repr, value))}" if isinstance(value, dict) else "it is no object"
        raise DataError(f"{where}: no key {key!r}; {there}. --json-key names the key that holds the text")
    text = value[key]
    if not isinstance(text, str):
        raise DataError(f"{where}: the value of {key!r} is {type(text).__name__}, not a text")
    return text

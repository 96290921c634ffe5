"""From the inputs a user names to files of known formats, in an order that is the same on every run."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from conclave.data.datasets_folder import without_other_splits, without_spare_files
from conclave.data.errors import DataError
from conclave.data.folder_walk import FolderWalk
from conclave.data.formats import SUPPORTED, SUPPORTED_CHATS, Format, Kind, format_of, looks_like_data, suffix_of
from conclave.data.readers import ChatReader, ValueReader
from conclave.data.standard_library import KEYWORD, standard_library_files, standard_library_folder
from conclave.printable import printable


@dataclass(frozen=True)
class ReadOptions:
    """How inputs become documents.

    Attributes:
        json_key: the key of a JSON object, or the column of a table, that holds the document: a text or token ids, or
            a chat's messages.
        chats: whether the documents are chats; text files are refused then.
        split_on_blank_lines: a text file holds many documents with blank lines between them, instead of one.
        extra_suffixes: further suffixes (".rst") of text files, in lower case.
        ignored_suffixes: suffixes of files in folders that shall not be read, though they look like data.
        split: of a folder that the `datasets` library wrote: the split to read, or "all".
        order: of the files of a folder: by their path, or by a hash of it, so that the last ones are a fair sample.
        strict: whether a document that cannot be used ends the work.
    """

    json_key: str = "text"
    chats: bool = False
    split_on_blank_lines: bool = False
    extra_suffixes: tuple[str, ...] = ()
    ignored_suffixes: tuple[str, ...] = ()
    split: str | None = None
    order: Literal["path", "hash"] = "path"
    strict: bool = False

    @property
    def reader(self) -> ChatReader | ValueReader:
        """How an object or a row becomes a document."""
        return ChatReader(self.json_key) if self.chats else ValueReader(self.json_key)

    def format_of(self, path: Path) -> Format | None:
        """None: files of this name are not read."""
        form = format_of(path, self.extra_suffixes)
        return None if self.chats and form is not None and form.kind is Kind.TEXT else form


@dataclass(frozen=True)
class InputFile:
    """A regular file that will be read."""

    path: Path
    form: Format
    size: int


@dataclass
class Inputs:
    """The files of all inputs, and what else lies in the folders."""

    files: list[InputFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    def report(self) -> list[str]:
        """What is read and what is not, a line each."""
        kinds = Counter(suffix_of(file.path) for file in self.files)
        listed = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in sorted(kinds.items()))
        return [f"reading {_files(len(self.files))} ({self.bytes:,} bytes): {listed}", *self.notes]


def list_inputs(inputs: Sequence[str], options: ReadOptions) -> Inputs:
    """The files of all inputs: files, folders (recursively) and the keyword `stdlib`, in the order given.

    Raises:
        DataError: an input does not exist or is not read, a folder holds data that would be passed over, or there is
            nothing to read.
    """
    found = Inputs()
    for name in inputs:
        if name == KEYWORD and options.chats:
            raise DataError(f"{KEYWORD} is text, and --chats takes messages. Leave --chats out, or give files of chats")
        if name == KEYWORD:
            files = _ordered(standard_library_files(), standard_library_folder(), "hash")
        elif Path(name).is_dir():
            files = _files_below(Path(name), options, found.notes)
        else:
            files = [_file_named(name, options)]
        for path in files:
            form = options.format_of(path)
            assert form is not None
            found.files.append(InputFile(path, form, path.stat().st_size))
    if not found.files:
        raise DataError(
            f"no documents in {', '.join(map(printable, inputs))}. Files that are read: {_supported(options)}"
            f"{'' if options.chats else ' (--suffix adds others)'}{''.join(f'. {note}' for note in found.notes)}"
        )
    return found


def _supported(options: ReadOptions) -> str:
    return SUPPORTED_CHATS if options.chats else " ".join([SUPPORTED, *options.extra_suffixes])


def _file_named(name: str, options: ReadOptions) -> Path:
    path, shown = Path(name), printable(name)
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:  # a name too long, a loop of links
        raise DataError(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not exists:
        raise DataError(f"{shown} does not exist. Give files ({_supported(options)}), folders, or the word {KEYWORD}")
    if not path.is_file():
        raise DataError(f"{shown} is no regular file: inputs are files, which may be read in parts, or folders")
    if options.format_of(path) is None:
        suffix = suffix_of(path)
        remedy = "convert it, for example to .jsonl"
        if options.chats:
            remedy = "--chats takes messages, which are in none of these files"
        elif not looks_like_data(suffix):
            remedy = f"if it is plain text, add --suffix {suffix}" if suffix else "if it is plain text, name it .txt"
        raise DataError(f"{shown}: files with suffix {suffix!r} are not read. Supported: {_supported(options)}; {remedy}")
    if not os.access(path, os.R_OK):
        raise DataError(f"{shown} cannot be read: Permission denied")
    return path


def _files_below(folder: Path, options: ReadOptions, notes: list[str]) -> list[Path]:
    walk = FolderWalk(folder)
    notes += walk.notes()
    wanted = [path for path in walk.files if suffix_of(path) not in options.ignored_suffixes]
    if ignored := len(walk.files) - len(wanted):
        notes.append(f"left out in {printable(folder)}: {_files(ignored)} that --ignore names")
    read = [path for path in wanted if options.format_of(path) is not None]
    unread = Counter(suffix_of(path) for path in wanted) - Counter(suffix_of(path) for path in read)
    _tell_unread(folder, unread, options, notes)
    read = without_spare_files(folder, read, notes)
    return _ordered(without_other_splits(folder, read, options.split, notes), folder, options.order)


def _tell_unread(folder: Path, unread: Counter[str], options: ReadOptions, notes: list[str]) -> None:
    """Names what is not read.

    Raises:
        DataError: it looks like data.
    """
    if not unread:
        return
    data = sorted(suffix for suffix in unread if looks_like_data(suffix))
    if data:
        counts = ", ".join(f"{unread[suffix]:,} {suffix}" for suffix in data)
        raise DataError(
            f"{printable(folder)} holds files that look like data and cannot be read: {counts}. Convert them, or leave "
            f"them out: {' '.join(f'--ignore {suffix}' for suffix in data)}"
        )
    counts = ", ".join(f"{count:,} {printable(suffix) or 'without a suffix'}" for suffix, count in sorted(unread.items()))
    remedy = "--chats reads no texts" if options.chats else "--suffix .EXT reads a suffix as text"
    notes.append(f"not read in {printable(folder)}: {counts} ({remedy})")


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _ordered(files: list[Path], folder: Path, order: Literal["path", "hash"]) -> list[Path]:
    """Files by their path below the folder, or by a hash of it. Neither depends on where the folder is.

    By path, the last documents all come from what is late in the alphabet; by hash, any stretch is a fair sample.
    """

    def key(path: Path) -> tuple[bytes, str]:
        relative = path.relative_to(folder).as_posix()
        digest = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).digest() if order == "hash" else b""
        return digest, relative

    return sorted(files, key=key)

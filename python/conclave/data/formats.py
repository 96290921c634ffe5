"""What the name of a file says about its content, in upper or lower case."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from conclave.data.errors import DataError


class Kind(Enum):
    """How a file holds documents."""

    TEXT = "text"  # one document, or many with blank lines between them
    JSON_LINES = "JSON lines"  # a document a line
    JSON = "JSON"  # an array of documents, or lines
    PARQUET = "Parquet"  # a document a row
    ARROW = "Arrow"  # a document a row


@dataclass(frozen=True)
class Format:
    """Kind of a file, and how it is compressed: "", ".gz" or ".zst"."""

    kind: Kind
    compression: str = ""


TEXT_SUFFIXES = (".txt", ".md", ".py")
_JSON_KINDS = {
    ".jsonl": Kind.JSON_LINES,
    ".ndjson": Kind.JSON_LINES,
    ".jsonlines": Kind.JSON_LINES,
    ".json": Kind.JSON,
}
_COMPRESSIONS = (".gz", ".zst")
_FORMATS = {
    **{suffix: Format(Kind.TEXT) for suffix in TEXT_SUFFIXES},
    **{suffix: Format(kind) for suffix, kind in _JSON_KINDS.items()},
    **{suffix + end: Format(kind, end) for suffix, kind in _JSON_KINDS.items() for end in _COMPRESSIONS},
    ".parquet": Format(Kind.PARQUET),
    ".arrow": Format(Kind.ARROW),
}
SUPPORTED_CHATS = ".jsonl .json (.gz .zst) .parquet .arrow"
SUPPORTED = f".txt .md .py {SUPPORTED_CHATS}"

# Files of these suffixes hold documents too, as far as one can tell: a folder is not read around them in silence.
_ARCHIVES = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip", ".tar", ".tgz", ".7z", ".rar")
_DATA = {".csv", ".tsv", ".feather", ".orc", ".avro", ".h5", ".hdf5", ".npy", ".npz", ".pkl", ".pickle", ".tfrecord",
         ".tfrecords", ".mds", ".warc", ".sqlite", ".db", ".xlsx", ".epub"}  # fmt: skip


def suffix_of(path: Path) -> str:
    """The suffix in lower case, with the one before it if the last names a compression: ".jsonl.gz"."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in _ARCHIVES and suffixes[-2][1:].isalnum():
        return "".join(suffixes[-2:])
    return suffixes[-1] if suffixes else ""


def format_of(path: Path, extra_suffixes: tuple[str, ...]) -> Format | None:
    """None: files of this name are not read."""
    found = _FORMATS.get(suffix_of(path))
    return Format(Kind.TEXT) if found is None and path.name.lower().endswith(extra_suffixes) else found


def looks_like_data(suffix: str) -> bool:
    """Whether a file that is not read may hold documents."""
    return suffix in _DATA or suffix.endswith(_ARCHIVES)


def text_suffix(word: str) -> str:
    """A suffix that a user names for text: ".rst" of "rst".

    Raises:
        DataError: files of that suffix are no text.
    """
    suffix = (word if word.startswith(".") else f".{word}").lower()
    known = _FORMATS.get(suffix)
    if known is not None and known.kind is not Kind.TEXT:
        raise DataError(f"--suffix {word}: these files are read as {known.kind.value} without the option, not as text")
    if looks_like_data(suffix):
        raise DataError(f"--suffix {word}: these files are no text. Convert them, for example to .jsonl")
    return suffix

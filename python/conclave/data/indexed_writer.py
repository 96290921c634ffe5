"""Writing Megatron's `.bin`/`.idx` pairs, so that a pair appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from conclave.data.errors import DataError
from conclave.data.outputs import reason_of
from conclave.printable import printable

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
TYPE_CODES = {np.dtype("<u2"): 8, np.dtype("<i4"): 4}
LONGEST_DOCUMENT = 2**31 - 1  # lengths are i32


def token_type(vocab_size: int) -> np.dtype:
    """The format's own rule: 16 bits below 65,500 ids, else 32."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


class IndexedWriter:
    """Collects documents in a temporary file beside the target; `publish` makes them PREFIX.bin and PREFIX.idx.

    A context manager: left without `publish`, for whatever reason, it leaves no file behind.
    """

    def __init__(self, prefix: Path, dtype: np.dtype) -> None:
        self.prefix = prefix
        self.dtype = dtype
        self.lengths = array("i")
        self._open = 0  # tokens of the document whose parts are being added
        self._bin_aside = self._aside(".bin")
        self._index_aside = self._aside(".idx")
        try:
            prefix.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._bin_aside, "w+b")
        except (OSError, ValueError) as error:
            raise DataError(f"--output {printable(prefix)} cannot be written: {reason_of(error)}") from None

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._bin_aside.unlink(missing_ok=True)
        self._index_aside.unlink(missing_ok=True)

    @property
    def tokens(self) -> int:
        """Tokens of all documents so far."""
        return self._file.tell() // self.dtype.itemsize

    def append(self, tokens: npt.NDArray[np.integer], lengths: Sequence[int]) -> None:
        """Adds documents, one behind the other in `tokens`, of the given lengths."""
        if tokens.dtype != self.dtype or len(tokens) != sum(lengths):
            raise AssertionError(
                f"{len(tokens)} tokens of {tokens.dtype}, lengths that sum to {sum(lengths)}, in a file of {self.dtype}"
            )
        self._check_length(max(lengths, default=0))
        self._file.write(tokens.tobytes())
        self.lengths.extend(lengths)

    def extend_document(self, tokens: npt.NDArray[np.integer]) -> None:
        """Adds a part of a document, which `close_document` ends or `abandon_document` takes back."""
        self._file.write(tokens.astype(self.dtype, copy=False).tobytes())
        self._open += len(tokens)

    def close_document(self) -> None:
        """Ends the document whose parts were added."""
        length, self._open = self._open, 0
        self._check_length(length)
        self.lengths.append(length)

    def abandon_document(self) -> None:
        """Takes back the parts of the document that is open."""
        self._file.seek((self.tokens - self._open) * self.dtype.itemsize)
        self._file.truncate()
        self._open = 0

    def split_off(self, documents: int, prefix: Path) -> IndexedWriter:
        """Moves the last documents into a writer of their own."""
        tail = IndexedWriter(prefix, self.dtype)
        try:
            self._move_tail(documents, tail)
        except BaseException:
            tail.__exit__(None, None, None)
            raise
        return tail

    def _move_tail(self, documents: int, tail: IndexedWriter) -> None:
        tail.lengths = self.lengths[len(self.lengths) - documents :]
        del self.lengths[len(self.lengths) - documents :]
        kept_bytes = (self.tokens - sum(tail.lengths)) * self.dtype.itemsize
        self._file.seek(kept_bytes)
        shutil.copyfileobj(self._file, tail._file, 1 << 20)
        self._file.seek(kept_bytes)
        self._file.truncate()

    def publish(self) -> None:
        """Flushes both files to the disk and names them, the index last: without it there is no data set."""
        with open(self._index_aside, "wb") as index:
            index.write(self._index())
            index.flush()
            os.fsync(index.fileno())
        self._file.flush()
        os.fsync(self._file.fileno())
        # An index that is already there belongs to the old tokens: it goes before they do.
        self._final(".idx").unlink(missing_ok=True)
        os.replace(self._bin_aside, self._final(".bin"))
        os.replace(self._index_aside, self._final(".idx"))
        folder = os.open(self.prefix.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @staticmethod
    def _check_length(length: int) -> None:
        if length > LONGEST_DOCUMENT:
            raise DataError(
                f"a document of {length} tokens; the format holds at most {LONGEST_DOCUMENT}. Divide it into several files"
            )

    def _index(self) -> bytes:
        lengths = np.array(self.lengths, dtype="<i4")
        ends = np.cumsum(lengths, dtype="<i8") * self.dtype.itemsize
        offsets = np.concatenate([np.zeros(1, "<i8"), ends])[:-1]
        boundaries = np.arange(len(lengths) + 1, dtype="<i8")  # a document is one sequence
        header = MAGIC + struct.pack("<QBQQ", VERSION, TYPE_CODES[self.dtype], len(lengths), len(boundaries))
        return header + lengths.tobytes() + offsets.astype("<i8").tobytes() + boundaries.tobytes()

    def _final(self, suffix: str) -> Path:
        return self.prefix.with_name(self.prefix.name + suffix)

    def _aside(self, suffix: str) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}{suffix}.tmp-{os.getpid()}")

"""Writing Megatron's `.bin`/`.idx` pairs, with a mask or without, so that a set appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from conclave.data.errors import DataError
from conclave.data.outputs import reason_of
from conclave.data.token_mask import HEADER_BYTES, MASKED_INDEX_VERSION, header, pair_checksum
from conclave.printable import printable

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
TYPE_CODES = {np.dtype("<u2"): 8, np.dtype("<i4"): 4}
LONGEST_DOCUMENT = 2**31 - 1  # lengths are i32
SET_ENDINGS = (".bin", ".idx", ".mask")


def files_of_set(prefix: Path) -> list[Path]:
    """The files that a set of this prefix may have."""
    return [prefix.with_name(prefix.name + ending) for ending in SET_ENDINGS]


def token_type(vocab_size: int) -> np.dtype:
    """The format's own rule: 16 bits below 65,500 ids, else 32."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


class IndexedWriter:
    """Collects documents in temporary files beside the target; `publish` makes them PREFIX.bin and PREFIX.idx.

    `masked`: also PREFIX.mask, which says of each token whether it is trained on. A context manager: left without
    `publish`, for whatever reason, it leaves no file behind.
    """

    def __init__(self, prefix: Path, dtype: np.dtype, masked: bool = False) -> None:
        self.prefix = prefix
        self.dtype = dtype
        self.trained = 0  # tokens that the mask says are trained on
        self._masked = masked
        self.lengths = array("i")
        self._open = 0  # tokens of the document whose parts are being added
        self._bin_aside = self._aside(".bin")
        self._index_aside = self._aside(".idx")
        self._mask_aside = self._aside(".mask")
        try:
            prefix.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._bin_aside, "w+b")
            self._mask = open(self._mask_aside, "w+b") if masked else None
            if self._mask is not None:
                self._mask.write(bytes(HEADER_BYTES))  # known at the end
        except (OSError, ValueError) as error:
            raise DataError(f"--output {printable(prefix)} cannot be written: {reason_of(error)}") from None

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._mask is not None:
            self._mask.close()
        for aside in (self._bin_aside, self._index_aside, self._mask_aside):
            aside.unlink(missing_ok=True)

    @property
    def tokens(self) -> int:
        """Tokens of all documents so far."""
        return self._file.tell() // self.dtype.itemsize

    def append(
        self, tokens: npt.NDArray[np.integer], lengths: Sequence[int], mask: npt.NDArray[np.uint8] | None = None
    ) -> None:
        """Adds documents, one behind the other in `tokens`, of the given lengths; `mask`: of a masked set's tokens."""
        if tokens.dtype != self.dtype or len(tokens) != sum(lengths):
            raise AssertionError(
                f"{len(tokens)} tokens of {tokens.dtype}, lengths that sum to {sum(lengths)}, in a file of {self.dtype}"
            )
        if (mask is None) == self._masked or (mask is not None and len(mask) != len(tokens)):
            raise AssertionError(f"{len(tokens)} tokens, a mask of {'none' if mask is None else len(mask)}")
        self._check_length(max(lengths, default=0))
        self._file.write(tokens.tobytes())
        if self._mask is not None and mask is not None:
            self._mask.write(mask.tobytes())
            self.trained += int(np.count_nonzero(mask))
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
        tail = IndexedWriter(prefix, self.dtype, self._masked)
        try:
            self._move_tail(documents, tail)
        except BaseException:
            tail.__exit__(None, None, None)
            raise
        return tail

    def _move_tail(self, documents: int, tail: IndexedWriter) -> None:
        tail.lengths = self.lengths[len(self.lengths) - documents :]
        del self.lengths[len(self.lengths) - documents :]
        kept = self.tokens - sum(tail.lengths)
        _move_end(self._file, kept * self.dtype.itemsize, tail._file)
        if self._mask is not None and tail._mask is not None:
            _move_end(self._mask, HEADER_BYTES + kept, tail._mask)
            tail.trained = _count_ones(tail._mask)
            self.trained -= tail.trained

    def publish(self) -> None:
        """Flushes the files to the disk and names them, the index last: without it there is no data set."""
        index_bytes = self._index()
        with open(self._index_aside, "wb") as index:
            index.write(index_bytes)
            index.flush()
            os.fsync(index.fileno())
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._mask is not None:
            self._finish_mask(index_bytes)
        # An index that is already there belongs to the old tokens: it goes before they do.
        self._final(".idx").unlink(missing_ok=True)
        self._final(".mask").unlink(missing_ok=True)
        os.replace(self._bin_aside, self._final(".bin"))
        if self._mask is not None:
            os.replace(self._mask_aside, self._final(".mask"))
        os.replace(self._index_aside, self._final(".idx"))
        folder = os.open(self.prefix.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _finish_mask(self, index: bytes) -> None:
        assert self._mask is not None
        tokens = self.tokens
        checksum = pair_checksum(index, self._file, tokens * self.dtype.itemsize)
        self._mask.seek(0)
        self._mask.write(header(tokens, self.trained, checksum))
        self._mask.flush()
        os.fsync(self._mask.fileno())

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
        version = MASKED_INDEX_VERSION if self._masked else VERSION
        start = MAGIC + struct.pack("<QBQQ", version, TYPE_CODES[self.dtype], len(lengths), len(boundaries))
        return start + lengths.tobytes() + offsets.astype("<i8").tobytes() + boundaries.tobytes()

    def _final(self, suffix: str) -> Path:
        return self.prefix.with_name(self.prefix.name + suffix)

    def _aside(self, suffix: str) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}{suffix}.tmp-{os.getpid()}")


def _move_end(source: BinaryIO, kept_bytes: int, target: BinaryIO) -> None:
    source.seek(kept_bytes)
    shutil.copyfileobj(source, target, 1 << 20)
    source.seek(kept_bytes)
    source.truncate()


def _count_ones(mask: BinaryIO) -> int:
    mask.seek(HEADER_BYTES)
    return sum(block.count(1) for block in iter(lambda: mask.read(1 << 20), b""))

"""Tokenizing documents into `.bin`/`.idx` pairs, by several processes. The result does not depend on their number."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tqdm import tqdm

from conclave.data.documents import Piece, ReadOptions, Skipped, documents_of, pieces_of
from conclave.data.errors import DataError
from conclave.data.indexed_writer import IndexedWriter, token_type
from conclave.data.tokenizer import end_token, open_tokenizer, vocabulary_size

TASK_BYTES = 1 << 20  # small files are tokenized together, about so many bytes a task
TASKS_AHEAD = 4  # tasks of a worker whose tokens may wait in memory


@dataclass(frozen=True)
class BuildOptions:
    """How documents become a data set.

    Attributes:
        read: how inputs become documents.
        validation_fraction: of the documents, the last ones, that go to PREFIX-validation, the others to PREFIX-train;
            0: all go to PREFIX.
        eos_token: the token behind each document; None: the tokenizer's own, if it has one.
        append_eos: whether there is a token behind each document at all.
        workers: processes; 0: one a core.
    """

    read: ReadOptions = ReadOptions()
    validation_fraction: float = 0.0
    eos_token: str | None = None
    append_eos: bool = True
    workers: int = 0


@dataclass
class Summary:
    """What was written."""

    sets: dict[Path, tuple[int, int]] = field(default_factory=dict)  # prefix: documents, tokens
    dtype: np.dtype = np.dtype("<u2")
    vocab_size: int = 0
    eos_token: str | None = None
    skipped: Skipped = field(default_factory=Skipped)
    bytes_read: int = 0


@dataclass
class _Tokenized:
    tokens: npt.NDArray[np.integer]
    lengths: list[int]
    skipped: Skipped


class _Worker:
    """What a process needs to turn pieces into tokens."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype, end_id: int | None) -> None:
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.end = [] if end_id is None else [end_id]

    def tokenize(self, pieces: Sequence[Piece]) -> _Tokenized:
        skipped = Skipped()
        parts: list[npt.NDArray[np.integer]] = []
        for piece in pieces:
            for text in documents_of(piece, skipped):
                ids = self.tokenizer.encode(text, add_special_tokens=False).ids
                if not ids:
                    skipped.empty += 1
                    continue
                parts.append(np.array(ids + self.end, dtype=self.dtype))
        tokens = np.concatenate(parts) if parts else np.zeros(0, self.dtype)
        return _Tokenized(tokens, [len(part) for part in parts], skipped)


_worker: _Worker | None = None  # of a worker process; set once by its initializer


def _start_worker(tokenizer_path: Path, dtype: np.dtype, end_id: int | None) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the parent's to handle
    _worker = _Worker(open_tokenizer(tokenizer_path), dtype, end_id)


def _tokenize(pieces: Sequence[Piece]) -> _Tokenized:
    assert _worker is not None
    return _worker.tokenize(pieces)


def build(inputs: Sequence[str], tokenizer_path: Path, output: Path, options: BuildOptions = BuildOptions()) -> Summary:
    """Tokenizes all documents of the inputs and writes them as one data set, or as a training and a validation set.

    Documents keep the order of the inputs; the files are the same for any number of workers. They appear under their
    names when they are complete.

    Raises:
        DataError: inputs, tokenizer or options are not usable; nothing was written.
    """
    fraction = options.validation_fraction
    if not 0 <= fraction < 1:
        raise DataError(f"--validation-fraction {fraction} is not in [0, 1)")
    tokenizer = open_tokenizer(tokenizer_path)
    end = end_token(tokenizer, tokenizer_path, options.eos_token) if options.append_eos else None
    end_id = None if end is None else tokenizer.token_to_id(end)
    vocab_size = vocabulary_size(tokenizer)
    summary = Summary(dtype=token_type(vocab_size), vocab_size=vocab_size, eos_token=end)
    tasks = _tasks_of(pieces_of(inputs, options.read))
    summary.bytes_read = sum(map(_bytes_of, tasks))

    train_prefix = _named(output, "-train") if fraction > 0 else output
    with IndexedWriter(train_prefix, summary.dtype) as train:
        with tqdm(total=summary.bytes_read, unit="B", unit_scale=True, desc="tokenizing", disable=None) as bar:
            workers = min(options.workers or len(os.sched_getaffinity(0)), len(tasks))
            results = _tokenize_all(tasks, workers, tokenizer, tokenizer_path, summary.dtype, end_id)
            for task, result in zip(tasks, results, strict=True):
                train.append(result.tokens, result.lengths)
                summary.skipped.undecodable += result.skipped.undecodable
                summary.skipped.empty += result.skipped.empty
                bar.update(_bytes_of(task))
        documents = len(train.lengths)
        if documents == 0:
            raise DataError(f"no text in {', '.join(inputs)}: {_told(summary.skipped)}")
        if fraction > 0:
            held_back = max(1, round(documents * fraction))
            if held_back >= documents:
                raise DataError(
                    f"--validation-fraction {fraction} of {documents} documents leaves none to train on. Give more "
                    "documents (--split-on-blank-lines makes many of one .txt file), or a smaller fraction"
                )
            validation_prefix = _named(output, "-validation")
            with train.split_off(held_back, validation_prefix) as validation:
                summary.sets[train_prefix] = (documents - held_back, train.tokens)
                summary.sets[validation_prefix] = (held_back, validation.tokens)
                validation.publish()
        else:
            summary.sets[train_prefix] = (documents, train.tokens)
        train.publish()
    return summary


def _tokenize_all(
    tasks: Sequence[list[Piece]],
    workers: int,
    tokenizer: Tokenizer,
    tokenizer_path: Path,
    dtype: np.dtype,
    end_id: int | None,
) -> Iterator[_Tokenized]:
    """Results in the order of the tasks, with a bounded number of them waiting in memory."""
    if workers <= 1:
        yield from map(_Worker(tokenizer, dtype, end_id).tokenize, tasks)
        return
    # Fresh processes: a fork would copy the threads' locks of this one in whatever state they are.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer_path, dtype, end_id)) as pool:
        waiting: deque[Future[_Tokenized]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(_tokenize, task))
                if len(waiting) >= workers * TASKS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _tasks_of(pieces: Sequence[Piece]) -> list[list[Piece]]:
    tasks: list[list[Piece]] = []
    filled = TASK_BYTES
    for piece in pieces:
        if filled >= TASK_BYTES:
            tasks.append([])
            filled = 0
        tasks[-1].append(piece)
        filled += piece.end - piece.begin
    return tasks


def _bytes_of(task: Sequence[Piece]) -> int:
    return sum(piece.end - piece.begin for piece in task)


def _named(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _told(skipped: Skipped) -> str:
    return f"{len(skipped.undecodable)} not UTF-8, {skipped.empty} empty"

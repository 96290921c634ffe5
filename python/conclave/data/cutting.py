"""Files, cut into pieces; pieces, gathered into tasks of about the same size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from conclave.data.errors import DataError
from conclave.data.formats import Kind
from conclave.data.inputs import InputFile, Inputs, ReadOptions
from conclave.data.json_stream import json_pieces
from conclave.data.long_text import LONG_BYTES
from conclave.data.pieces import JsonLines, JsonObjects, Piece, Rows, TextFile, TextParagraphs, TextPart
from conclave.data.tables import table_pieces

PIECE_BYTES = 4 << 20  # a file that holds many documents is cut about every so many bytes
TASK_BYTES = 1 << 20  # small files are tokenized together, about so many bytes a task

Survey = Callable[[Path, int], Iterable[Piece]]


def pieces_of(inputs: Inputs, options: ReadOptions, survey: Survey | None = None) -> Iterator[Piece]:
    """The pieces of all files, in their order. `survey` finds the parts of long texts; without it those are one piece.

    Raises:
        DataError: a file cannot be read, or is damaged as a whole.
    """
    for file in inputs.files:
        kind = file.form.kind
        if kind in (Kind.PARQUET, Kind.ARROW):
            yield from table_pieces(file.path, file.form, options.reader)
        elif kind is Kind.JSON or file.form.compression:
            yield from json_pieces(file.path, file.form, options.reader)
        elif kind is Kind.JSON_LINES:
            for begin, end in _between_lines(file, False):
                yield JsonLines(file.path, end - begin, begin, options.reader)
        elif options.split_on_blank_lines and file.path.suffix.lower() == ".txt":
            for begin, end in _between_lines(file, True):
                yield TextParagraphs(file.path, end - begin, begin)
        elif file.size > LONG_BYTES and survey is not None:
            yield from survey(file.path, file.size)
        else:
            yield TextFile(file.path, file.size)


def tasks_of(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces that one process takes at once. Parts of long texts, and what was read here already, stand alone."""
    task: list[Piece] = []
    filled = 0
    for piece in pieces:
        alone = isinstance(piece, (TextPart, JsonObjects, Rows))
        if task and (filled >= TASK_BYTES or alone):
            yield task
            task, filled = [], 0
        task.append(piece)
        filled += TASK_BYTES if alone else piece.weight
    if task:
        yield task


def _between_lines(file: InputFile, blank: bool) -> Iterator[tuple[int, int]]:
    """Stretches of a file that end with a line (or with a blank one)."""
    try:
        with open(file.path, "rb") as lines:
            begin = 0
            while begin < file.size:
                lines.seek(min(begin + PIECE_BYTES, file.size))
                line = lines.readline()  # the rest of a line that may have begun before
                while blank and line and (line := lines.readline()).strip():
                    pass
                end = min(lines.tell(), file.size)
                yield begin, end
                begin = end
    except OSError as error:
        raise DataError.of_file(file.path, error) from None

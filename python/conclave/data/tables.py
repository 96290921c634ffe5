"""Columns of Parquet and Arrow files, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conclave.data.errors import DataError
from conclave.data.formats import Format, Kind
from conclave.data.pieces import Rows
from conclave.data.readers import ChatReader, ValueReader
from conclave.printable import printable, shortened

PIECE_BYTES = 1 << 20  # values that travel to a process together
_ROWS = 64  # taken at a time, so that rows of a megabyte do not fill the memory
_FILE_MAGIC = b"ARROW1"  # of Arrow's file format; without it the file is a stream, as the `datasets` library writes

_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def table_pieces(path: Path, form: Format, reader: ChatReader | ValueReader) -> Iterator[Rows]:
    """What the reader wants of a table, some rows at a time.

    Raises:
        DataError: the file is damaged, has no such column, or it holds neither texts nor lists of ids.
    """
    arrow = _pyarrow()
    size = path.stat().st_size
    values: list[Any] = []
    row = held = told = 0
    try:
        for batch, part_read in (_parquet if form.kind is Kind.PARQUET else _arrow)(arrow, path, reader):
            is_chats = isinstance(reader, ChatReader)
            for value, value_bytes in _chat_rows(batch) if is_chats else _values(arrow, batch.column(0)):
                values.append(value)
                held += value_bytes
                if held >= PIECE_BYTES:
                    now = round(size * part_read)
                    yield Rows(path, max(0, now - told), row, tuple(values), reader)
                    row, values, held, told = row + len(values), [], 0, max(now, told)
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {shortened(error)}") from None
    except arrow.ArrowException as error:
        raise DataError(
            f"{printable(path)} is no {form.kind.value} file, or damaged: {shortened(error)}"
        ) from None
    yield Rows(path, size - told, row, tuple(values), reader)


def _parquet(arrow: Any, path: Path, reader: ChatReader | ValueReader) -> Iterator[tuple[Any, float]]:
    import pyarrow.parquet

    with open(path, "rb") as raw, pyarrow.parquet.ParquetFile(raw, buffer_size=1 << 20) as file:
        columns = _columns(arrow, path, file.schema_arrow, reader)
        rows = 0
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns, use_threads=False):
            rows += batch.num_rows
            yield batch, rows / file.metadata.num_rows


def _arrow(arrow: Any, path: Path, reader: ChatReader | ValueReader) -> Iterator[tuple[Any, float]]:
    size = path.stat().st_size
    with open(path, "rb") as raw:
        is_file = raw.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        raw.seek(max(0, size - len(_STREAM_END)))
        if not is_file and raw.read() != _STREAM_END:
            raise DataError(f"{printable(path)} is no Arrow file, or it is cut: its end is missing. Copy it again")
        raw.seek(0)
        source = arrow.PythonFile(raw, "r")
        table = arrow.ipc.open_file(source) if is_file else arrow.ipc.open_stream(source)
        columns = _columns(arrow, path, table.schema, reader)
        batches = (table.get_batch(i) for i in range(table.num_record_batches)) if is_file else table
        for batch in batches:
            for begin in range(0, batch.num_rows, _ROWS):
                yield batch.select(columns).slice(begin, _ROWS), min(1.0, raw.tell() / size)


def _columns(arrow: Any, path: Path, schema: Any, reader: ChatReader | ValueReader) -> list[str]:
    if isinstance(reader, ChatReader):
        return reader.columns(schema.names, printable(path))
    _check_column(arrow, path, schema, reader.key)
    return [reader.key]


def _check_column(arrow: Any, path: Path, schema: Any, key: str) -> None:
    if key not in schema.names:
        columns = ", ".join(repr(shortened(name, 40)) for name in schema.names) or "none"
        raise DataError(f"{printable(path)} has no column {key!r}; its columns are {columns}. --json-key names one")
    kind = schema.field(key).type
    if arrow.types.is_dictionary(kind):
        kind = kind.value_type
    if not (_is_text(arrow, kind) or (_is_list(arrow, kind) and arrow.types.is_integer(kind.value_type))):
        raise DataError(
            f"{printable(path)}: the column {key!r} holds {shortened(kind, 60)}, neither texts nor lists of token ids"
        )


def _is_text(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_list(arrow: Any, kind: Any) -> bool:
    return arrow.types.is_list(kind) or arrow.types.is_large_list(kind) or arrow.types.is_fixed_size_list(kind)


def _values(arrow: Any, column: Any) -> Iterator[tuple[Any, int]]:
    """Each value (a text as bytes, which may be no UTF-8; ids as an array; None) and about how many bytes it takes."""
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(arrow, column.type):
        for value in column.cast(arrow.large_binary()).to_pylist():
            yield value, len(value or b"") + 1
        return
    for scalar in column:
        ids = scalar.values if scalar.is_valid else None
        if ids is None or ids.null_count:
            yield None if ids is None else ids.to_pylist(), 1
        else:
            yield ids.to_numpy(zero_copy_only=False), ids.nbytes + 1


def _chat_rows(batch: Any) -> Iterator[tuple[Any, int]]:
    """Each row as a dictionary (None: it holds a text that is not UTF-8) and about how many bytes it takes."""
    row_bytes = batch.nbytes // max(batch.num_rows, 1) + 1
    for number in range(batch.num_rows):
        try:
            (row,) = batch.slice(number, 1).to_pylist()
        except UnicodeDecodeError:
            row = None
        yield row, row_bytes


def _pyarrow() -> Any:
    try:
        import pyarrow.ipc
    except ModuleNotFoundError:
        raise DataError(
            "reading .parquet and .arrow files needs the Python package pyarrow: pip install pyarrow "
            "(the extra `data` of conclave brings it)"
        ) from None
    return pyarrow

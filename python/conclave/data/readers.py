"""How an object of a JSON file, or a row of a table, becomes a document: one value of it, or a chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from conclave.data.chats import CHAT_COLUMNS, SHAREGPT_KEY, Chat, chat_of, without_nulls
from conclave.data.content import NOT_UTF8, Content, content_of_value, object_of_json, value_under
from conclave.data.errors import DataError
from conclave.data.left_out import Flaw
from conclave.printable import shortened


class Reader(Protocol):
    """What pieces ask; it passes to other processes."""

    def of_json(self, raw: bytes) -> Content:
        """The document of a JSON object. Raises a Flaw if there is none."""
        ...

    def of_row(self, value: Any) -> Content:
        """The document of what a table's row holds in `columns`."""
        ...


@dataclass(frozen=True)
class ValueReader:
    """The value under `key`: a text, or token ids."""

    key: str

    def of_json(self, raw: bytes) -> Content:
        return content_of_value(value_under(object_of_json(raw), self.key), self.key)

    def of_row(self, value: Any) -> Content:
        return content_of_value(value, self.key)


@dataclass(frozen=True)
class ChatReader:
    """Messages under `key`, or `prompt` and `completion`."""

    key: str

    def of_json(self, raw: bytes) -> Chat:
        return chat_of(object_of_json(raw), self.key)

    def of_row(self, value: Any) -> Chat:
        if value is None:
            raise Flaw(NOT_UTF8)
        return chat_of(without_nulls(value), self.key)

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """Of a table's columns, those to read.

        Raises:
            DataError: it has no chats.
        """
        wanted = [name for name in dict.fromkeys((self.key, *CHAT_COLUMNS)) if name in names]
        if self.key not in wanted and SHAREGPT_KEY not in wanted and not {"prompt", "completion"} <= set(wanted):
            listed = ", ".join(repr(shortened(name, 40)) for name in names) or "none"
            raise DataError(
                f"{where} has neither a column {self.key!r} nor {SHAREGPT_KEY!r} nor 'prompt' with 'completion'; its columns are {listed}. "
                "--json-key names the one of the messages"
            )
        return wanted

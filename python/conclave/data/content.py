"""What a document's bytes or value mean: a text, the ids of tokens, or a chat. Whatever cannot be used is a `Flaw`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from conclave.data.chats import Chat
from conclave.data.left_out import Flaw
from conclave.printable import shortened

Ids = npt.NDArray[np.int64]
Content = str | Ids | Chat
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

NOT_UTF8 = "not UTF-8"
NOT_JSON = "not JSON"
LONE_SURROGATE = "half a surrogate pair, which is no text"
HOLDS_NUL = "holds bytes of value 0, which no text file does"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_NAMES = {bool: "a boolean", int: "a number", float: "a number", dict: "an object", list: "a list", bytes: "bytes"}


def text_of(raw: bytes) -> str:
    """The text of a file, or of a part of it, without a byte order mark.

    Raises:
        Flaw: it is not UTF-8, or binary.
    """
    start = len(BYTE_ORDER_MARK) if raw.startswith(BYTE_ORDER_MARK) else 0
    if (nul := raw.find(0)) >= 0:
        if raw.startswith(_UTF16_MARKS):
            raise Flaw(NOT_UTF8, "it begins as UTF-16 does", 0)
        raise Flaw(HOLDS_NUL, byte=nul)
    try:
        return raw[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise Flaw(NOT_UTF8, byte=start + error.start) from None


def object_of_json(raw: bytes) -> dict[str, Any]:
    """One JSON object.

    Raises:
        Flaw: the bytes are none.
    """
    line = raw.removeprefix(BYTE_ORDER_MARK)
    if not line.strip(b"\0 \t\r\n"):
        raise Flaw(HOLDS_NUL) if b"\0" in line else Flaw(NOT_JSON, "nothing stands here")
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Flaw(NOT_UTF8, byte=len(raw) - len(line) + error.start) from None
    except json.JSONDecodeError as error:
        raise Flaw(NOT_JSON, f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise Flaw("nested too deep") from None
    except ValueError:  # Python's limit against slow conversions
        raise Flaw("a number of more than 4,300 digits") from None
    if not isinstance(value, dict):
        raise Flaw("no JSON object", f"it is {_name_of(value)}")
    return value


def value_under(key_values: dict[str, Any], key: str) -> Any:
    """The value of a key.

    Raises:
        Flaw: it is not there.
    """
    if key not in key_values:
        chat = " (it is a chat: --chats reads those)" if key_values.keys() & {"messages", "conversations", "completion"} else ""
        raise Flaw(
            f"no key {key!r}{chat}",
            f"its keys are {_listed(key_values)}. --json-key names the one that holds the document",
        )
    return key_values[key]


def content_of_value(value: Any, key: str) -> Content:
    """A value of a JSON object, or of a table (where texts are bytes).

    Raises:
        Flaw: it is neither a text nor a list of ids.
    """
    if isinstance(value, np.ndarray):
        return value.astype(np.int64)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Flaw(NOT_UTF8, f"from byte {error.start} of the value") from None
    if isinstance(value, str):
        if not _encodable(value):
            raise Flaw(LONE_SURROGATE)
        return value
    if isinstance(value, list) and all(type(number) is int for number in value):
        try:
            return np.array(value, dtype=np.int64)
        except OverflowError:
            raise Flaw(f"the list under {key!r} holds no token ids", "a number above 2^63") from None
    if isinstance(value, list):
        raise Flaw(f"the list under {key!r} holds no token ids", "token ids are whole numbers")
    if value is None:
        raise Flaw(f"null under {key!r}")
    raise Flaw(f"neither a text nor a list of token ids under {key!r}", f"it is {_name_of(value)}")


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _name_of(value: Any) -> str:
    return "null" if value is None else "a text" if isinstance(value, str) else _NAMES.get(type(value), "something else")


def _listed(keys: dict[str, Any]) -> str:
    shown = [repr(shortened(key, 40)) for key in list(keys)[:6]]
    return ", ".join(shown) + (", ..." if len(keys) > 6 else "") if shown else "none"

"""Text from outside the process, made fit for a terminal or a page."""

from __future__ import annotations

import os


def printable(text: object) -> str:
    """The text with control characters, and what no encoding can hold, written as escapes ("\\x1b", "\\ud83d").

    A name in a file or on a disk can then neither steer the terminal nor stop the message that shows it.
    """
    raw = os.fspath(text) if isinstance(text, os.PathLike) else str(text)
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in raw)


def shortened(text: object, most: int = 200) -> str:
    """The same, cut where it is long."""
    raw = str(text)
    return printable(raw) if len(raw) <= most else f"{printable(raw[:most])} ..."


def _escaped(letter: str) -> str:
    if 0xDC80 <= ord(letter) <= 0xDCFF:  # how Python holds a byte of a file name that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")

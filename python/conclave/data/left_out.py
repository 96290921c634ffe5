"""Documents that cannot be used: counted by reason, with the places of the first few, or the end of the work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from conclave.data.errors import DataError
from conclave.printable import printable

MOST_PLACES = 5  # of a reason, that are shown
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Place:
    """Where a document lies: in a file of lines or text by its byte, in a table by its row (from 0)."""

    path: Path
    byte: int | None = None
    line: int | None = None  # from 1; None: not counted yet
    row: int | None = None

    def __str__(self) -> str:
        name = printable(self.path)
        if self.row is not None:
            return f"{name}, row {self.row}"
        if self.byte is None:
            return name
        line = self.line if self.line is not None else _line_at(self.path, self.byte)
        return f"{name}, line {line} (byte {self.byte})"


class Flaw(Exception):
    """A document cannot be used: a reason that others may share, what is special about this one, and at which byte."""

    def __init__(self, reason: str, detail: str = "", byte: int | None = None) -> None:
        super().__init__(reason, detail, byte)  # all of them, so that it passes to other processes
        self.reason = reason
        self.detail = detail
        self.byte = byte


@dataclass
class _Tally:
    count: int = 0
    places: list[tuple[Place, str]] = field(default_factory=list)


@dataclass
class LeftOut:
    """What was left out. `strict`: a flaw ends the work instead."""

    strict: bool = False
    empty: int = 0  # no text but white space; no flaw
    cut: int = 0  # used, but for their end
    by_reason: dict[str, _Tally] = field(default_factory=dict)

    def add(self, flaw: Flaw, place: Place) -> None:
        """Notes a document.

        Raises:
            DataError: `strict`.
        """
        if self.strict:
            detail = f": {flaw.detail}" if flaw.detail else ""
            raise DataError(f"{place}: {flaw.reason}{detail}. Without --strict such documents are left out and counted")
        tally = self.by_reason.setdefault(flaw.reason, _Tally())
        tally.count += 1
        if len(tally.places) < MOST_PLACES:
            tally.places.append((place, flaw.detail))

    def merge(self, other: LeftOut) -> None:
        """Adds what another process left out, later in the order of documents."""
        self.empty += other.empty
        self.cut += other.cut
        for reason, tally in other.by_reason.items():
            own = self.by_reason.setdefault(reason, _Tally())
            own.count += tally.count
            own.places += tally.places[: MOST_PLACES - len(own.places)]

    def lines(self) -> list[str]:
        """The report."""
        lines = [f"skipped {self.empty:,} empty documents"] if self.empty else []
        if self.cut:
            lines.append(f"cut {self.cut:,} document{'s' if self.cut > 1 else ''} at their end (--too-long cut)")
        for reason, tally in self.by_reason.items():
            lines.append(f"left out {tally.count:,} document{'s' if tally.count > 1 else ''}: {reason}")
            lines += [f"  {place}{': ' if detail else ''}{detail}" for place, detail in tally.places]
            if tally.count > len(tally.places):
                lines.append(f"  and {tally.count - len(tally.places):,} more")
        return lines

    def summary(self) -> str:
        """The same in a few words."""
        parts = [f"{tally.count:,} left out ({reason})" for reason, tally in self.by_reason.items()]
        return ", ".join([*parts, f"{self.empty:,} empty"])


def _line_at(path: Path, byte: int) -> int:
    line = 1
    try:
        with open(path, "rb") as file:
            while byte > 0 and (block := file.read(min(byte, _BLOCK))):
                line += block.count(b"\n")
                byte -= len(block)
    except OSError:
        pass  # the byte says enough
    return line

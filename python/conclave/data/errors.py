"""The error of this package."""

from __future__ import annotations

from pathlib import Path

from conclave.printable import printable


class DataError(Exception):
    """A mistake the user can mend: says what is wrong, where, and the remedy.

    The program prints it and exits with code 2.
    """

    @classmethod
    def of_file(cls, path: Path, error: OSError) -> DataError:
        """A file or folder cannot be read."""
        return cls(f"{printable(path)} cannot be read: {error.strerror}")

    @classmethod
    def changed(cls, path: Path) -> DataError:
        """A file is not what it was when it was looked at."""
        return cls(f"{printable(path)} has changed while it was read. Start again when nothing writes to it")

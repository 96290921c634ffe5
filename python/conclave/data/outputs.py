"""Files that a command writes: nothing is replaced that was not meant to be, and a file appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from conclave.data.errors import DataError
from conclave.printable import printable


def check_outputs(files: Sequence[Path], overwrite: bool) -> None:
    """Looks at the files that a command will write, before its work.

    Raises:
        DataError: one is there already (and `overwrite` is not given), or cannot be written.
    """
    there = []
    for file in files:
        try:
            if file.is_dir():
                raise DataError(f"--output: {printable(file)} is a folder. Name a file in it")
            if os.path.lexists(file):
                there.append(file)
            _check_folder(file)
        except (OSError, ValueError) as error:
            raise DataError(f"--output: {printable(file)} cannot be written: {reason_of(error)}") from None
    if there and not overwrite:
        raise DataError(
            f"{', '.join(map(printable, there))} would be replaced. Give another --output, or --overwrite to replace "
            "what is there"
        )


def _check_folder(file: Path) -> None:
    """Raises what the system says when the file could not be made."""
    folder = file.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(20, f"{folder} is no folder")
    probe = folder / f".{os.getpid()}.conclave-probe"
    probe.touch()
    probe.unlink()


def write_whole(path: Path, content: str) -> None:
    """Writes a text file beside its place, and moves it there when it is on the disk.

    Raises:
        DataError: it cannot be written.
    """
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{printable(path)} cannot be written: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    """In the system's words."""
    return str(getattr(error, "strerror", None) or error)

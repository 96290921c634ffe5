"""The regular files below a folder: each once, whatever links lead to it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from conclave.data.errors import DataError
from conclave.printable import printable

MOST_NAMES = 5  # of what is left out, that are shown


class FolderWalk:
    """Walks a folder.

    Linked folders and files are followed, but what was found already is not taken again: a link to a folder above ends
    nothing and repeats nothing. Names that begin with a dot (.git, .ipynb_checkpoints) are left out.

    Attributes:
        files: regular files, in no particular order.

    Raises:
        DataError: a folder cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.files: list[Path] = []
        self._folder = folder
        self._seen: set[tuple[int, int]] = set()  # folders and files: device, inode
        self._linked_folders: list[Path] = []
        self._linked_files: list[Path] = []
        self._hidden: Counter[str] = Counter()
        self._repeated: list[Path] = []
        self._special: list[Path] = []  # pipes, sockets, devices, links to nothing
        self._walk(folder)
        # Links come last, so that a file is named by its own path rather than by a link's.
        while self._linked_folders:
            self._linked_folders.sort(reverse=True)
            link = self._linked_folders.pop()
            if _identity(link) in self._seen:
                self._repeated.append(link)
            else:
                self._walk(link)
        for link in sorted(self._linked_files):
            (self._repeated if _identity(link) in self._seen else self.files).append(link)
            self._seen.add(_identity(link))

    def notes(self) -> list[str]:
        """What was left out, a line for each kind."""
        where = printable(self._folder)
        notes = []
        if self._hidden:
            notes.append(f"left out in {where}: {_listed(sorted(self._hidden))} (hidden)")
        if self._repeated:
            notes.append(f"left out in {where}: {_listed(self._relative(self._repeated))} (links to what is read already)")
        if self._special:
            notes.append(f"left out in {where}: {_listed(self._relative(self._special))} (no regular files)")
        return notes

    def _relative(self, paths: list[Path]) -> list[str]:
        return sorted(str(path.relative_to(self._folder)) for path in paths)

    def _walk(self, top: Path) -> None:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            try:
                identity = _identity(folder)
                if identity in self._seen:
                    continue
                self._seen.add(identity)
                with os.scandir(folder) as entries:
                    for entry in entries:
                        self._sort_in(entry, waiting)
            except OSError as error:
                raise DataError.of_file(folder, error) from None

    def _sort_in(self, entry: os.DirEntry[str], waiting: list[Path]) -> None:
        path = Path(entry.path)
        if entry.name.startswith("."):
            self._hidden[entry.name] += 1
        elif entry.is_symlink():
            if _is(entry.is_dir):
                self._linked_folders.append(path)
            else:
                (self._linked_files if _is(entry.is_file) else self._special).append(path)
        elif entry.is_dir():
            waiting.append(path)
        elif entry.is_file():
            self.files.append(path)
            self._seen.add((entry.stat().st_dev, entry.inode()))
        else:
            self._special.append(path)


def _is(question: object) -> bool:
    try:
        return bool(question())  # type: ignore[operator]
    except OSError:  # a loop of links
        return False


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _listed(names: list[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:MOST_NAMES])
    return shown + (f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else "")

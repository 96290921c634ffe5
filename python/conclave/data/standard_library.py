"""The sources of Python's standard library: real text that is on every machine that can run this program."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path

KEYWORD = "stdlib"  # the input that stands for these files

# Left out: what other packages installed; the library's own tests, which some installations have and others do not; and what
# is no text that someone wrote but tables that programs generated (character maps, help topics, build settings).
EXCLUDED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"})
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")


def standard_library_files() -> list[Path]:
    """The `.py` files of the running Python's standard library, in the order of a hash of their path.

    Sorted by path, the last documents would all come from packages late in the alphabet; in this order any stretch of them
    is a fair sample of all, and the order is the same wherever Python is installed.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in EXCLUDED_FOLDERS and not name.startswith(EXCLUDED_PREFIXES)]
        for name in files:
            path = Path(parent, name)
            if path.suffix == ".py" and not name.startswith(EXCLUDED_PREFIXES) and path.is_file() and not path.is_symlink():
                found.append(path)
    return sorted(found, key=lambda path: hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest())

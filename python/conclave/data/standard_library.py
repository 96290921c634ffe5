"""The sources of Python's standard library: real text that is on every machine that can run this program."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

KEYWORD = "stdlib"  # the input that stands for these files

# Left out: what other packages installed; the library's own tests, which some installations have and others do not;
# and what nobody wrote: tables that programs generated (character maps, help topics, build settings).
EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
)
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")


def standard_library_folder() -> Path:
    """Where the running Python keeps its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def standard_library_files() -> list[Path]:
    """The library's `.py` files, in no particular order."""
    found: list[Path] = []
    for parent, folders, files in os.walk(standard_library_folder()):
        folders[:] = [
            name for name in folders if name not in EXCLUDED_FOLDERS and not name.startswith(EXCLUDED_PREFIXES)
        ]
        for name in files:
            path = Path(parent, name)
            written_here = path.is_file() and not path.is_symlink()
            if path.suffix == ".py" and written_here and not name.startswith(EXCLUDED_PREFIXES):
                found.append(path)
    return found

"""Folders that the `datasets` library or the Hugging Face hub writes: which of their files hold documents.

`save_to_disk` leaves `dataset_dict.json` (splits, one folder each), and in each folder `state.json`, `dataset_info.json`
and Arrow files. The hub keeps `SPLIT-00000-of-00002.parquet` or `.jsonl`, and `README.md`, which describes the data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conclave.data.errors import DataError
from conclave.data.formats import Kind, format_of
from conclave.printable import printable, shortened

DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
ALL_SPLITS = "all"
_SHARD = re.compile(r"(?P<split>[\w.]+?)-\d{5}-of-\d{5}(-\w+)?\.")


def without_spare_files(folder: Path, files: Sequence[Path], notes: list[str]) -> list[Path]:
    """The files without descriptions of the data, and without what `datasets` caches beside a saved set.

    Raises:
        DataError: a file of a saved set is missing.
    """
    tables = [path for path in files if _is_table(path)]
    if not tables:
        return list(files)
    described = {parent for path in tables for parent in (path.parent, *path.parent.parents)}
    spare = {
        path
        for path in files
        if path.parent in described and (path.name in DESCRIPTIONS or path.name.lower() == "readme.md")
    }
    for parent in sorted({path.parent for path in tables}):
        if (parent / "state.json").is_file():
            saved = _saved_files(parent)
            there = {path.name for path in tables if path.parent == parent}
            if missing := sorted(saved - there):
                raise DataError(f"{printable(parent)} is not whole: {shortened(missing[0])} is missing, which its state.json names")
            spare |= {path for path in tables if path.parent == parent and path.name not in saved}
    if spare:
        names = sorted({path.name for path in spare})
        shown = ", ".join(printable(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
        notes.append(f"left out in {printable(folder)}: {shown} (describe the data, or are caches)")
    return [path for path in files if path not in spare]


def without_other_splits(folder: Path, files: Sequence[Path], asked: str | None, notes: list[str]) -> list[Path]:
    """The files of the split that was asked for, and those that belong to none.

    Raises:
        DataError: there are several and none was asked for, or not the one asked for.
    """
    split_of = {path: _split_of(folder, path) for path in files}
    splits = sorted({split for split in split_of.values() if split is not None})
    if asked is None and len(splits) > 1 or asked not in (None, ALL_SPLITS, *splits) and splits:
        raise DataError(
            f"{printable(folder)} holds the splits {', '.join(map(printable, splits))}. Take one with --split, or all of "
            f"them with --split {ALL_SPLITS}"
        )
    if asked in (None, ALL_SPLITS) or not splits:
        return list(files)
    if len(splits) > 1:
        notes.append(f"left out in {printable(folder)}: the splits other than {asked}")
    return [path for path in files if split_of[path] in (asked, None)]


def _is_table(path: Path) -> bool:
    form = format_of(path, ())
    return form is not None and form.kind in (Kind.PARQUET, Kind.ARROW)


def _split_of(folder: Path, path: Path) -> str | None:
    for parent in path.parents:
        if (parent / "dataset_dict.json").is_file():
            return path.relative_to(parent).parts[0]
        if parent == folder:
            break
    shard = _SHARD.match(path.name)
    return shard["split"] if shard else None


def _saved_files(folder: Path) -> set[str]:
    file = folder / "state.json"
    try:
        state: Any = json.loads(file.read_bytes())
        return {entry["filename"] for entry in state["_data_files"]}
    except OSError as error:
        raise DataError.of_file(file, error) from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DataError(f"{printable(file)} is not what the `datasets` library writes: no list of data files in it") from None

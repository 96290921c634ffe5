"""job.yaml of a run, as the program has written it: groups of keys with plain values. Anything else is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from conclave.printable import shortened

LARGEST_FILE = 1 << 18  # the program writes some kilobytes
DEEPEST = 8
_LONGEST_VALUE = 300


class _PlainLoader(yaml.SafeLoader):
    """Without aliases, which may stand for more than fits into memory, and without depth."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.YAMLError("too deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def read_job(file: Path, flaws: list[str]) -> dict[str, dict[str, Any]]:
    """Groups by their names. What cannot be read is told in `flaws`."""
    if not file.is_file():
        flaws.append("there is no job.yaml: the job is not known")
        return {}
    with open(file, "rb") as content:
        text = content.read(LARGEST_FILE + 1)
    job = _parsed(text) if len(text) <= LARGEST_FILE else None
    if not isinstance(job, dict):
        flaws.append("job.yaml cannot be read as a job of the program: the job is not known")
        return {}
    groups = {shortened(name, 60): _plain_values(keys) for name, keys in job.items() if isinstance(keys, dict)}
    if len(groups) < len(job):
        flaws.append(f"{len(job) - len(groups)} entries of job.yaml are no groups of keys and were left out")
    return groups


def _parsed(text: bytes) -> Any:
    loader = None
    try:
        loader = _PlainLoader(text)
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, ArithmeticError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
        return None  # ValueError and the like: values that look like dates or numbers and are none
    finally:
        if loader is not None:
            loader.dispose()


def _plain_values(keys: dict[Any, Any]) -> dict[str, Any]:
    """Numbers, words, booleans and None as they are; the rest as text."""
    return {_text(name): _plain(value) for name, value in keys.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    return _text(value)


def _text(value: Any) -> str:
    try:
        return shortened(value, _LONGEST_VALUE)
    except ValueError:  # Python's limit for numbers of very many digits
        return "(a number of very many digits)"

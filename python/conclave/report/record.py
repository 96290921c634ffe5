"""A line of metrics.jsonl: what of it can be drawn. Nothing in it is trusted; a run may have been killed in the middle of a line, or the disk be bad."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conclave.printable import shortened

START_KEYS = ("started_after", "ranks", "device", "compute", "conclave_version", "torch_version")
LARGEST_STEP = 10**12
LARGEST = 1e100  # from there on arithmetic on the way to a picture overflows; no metric gets there. Drawn as not finite
MOST_CELLS = 1_000_000  # of a list by layer
LARGEST_CELL = 1e9  # its numbers are shares, ratios, losses and counts
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as the log writes them
_LONGEST_WORD = 60
SAMPLE = "sample/"  # what the names of texts begin with
MOST_SAMPLES = 50  # of a step
_LONGEST_SAMPLE = 5000


@dataclass
class Record:
    """What a step left."""

    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    tables: dict[str, np.ndarray] = field(default_factory=dict)  # [L] or [L, E] by the metric's name
    start: dict[str, Any] | None = None  # START_KEYS, if the program was started before this step
    samples: list[str] = field(default_factory=list)  # texts of the model
    damaged_values: int = 0  # that were left out


def read_record(line: bytes) -> Record | None:
    """None: the line is no record."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not _is_step(values.get("step")):
        return None
    record = Record(values["step"])
    for name, value in values.items():
        if name == "step" or name in START_KEYS:
            continue
        if name.startswith(SAMPLE):
            if isinstance(value, str) and len(record.samples) < MOST_SAMPLES:
                record.samples.append(value[:_LONGEST_SAMPLE])
            else:
                record.damaged_values += 1
            continue
        if name.endswith("_by_layer"):
            table = _table(value, 2 if name == "expert_share_by_layer" else 1)
            if table is None:
                record.damaged_values += 1
            else:
                record.tables[name] = table
        elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
            number = _number(value)
            if number is not None:
                record.scalars[shortened(name, _LONGEST_WORD)] = number
            else:
                record.damaged_values += not isinstance(value, str)
    if "started_after" in values:
        record.start = {key: _start_value(key, values.get(key)) for key in START_KEYS}
    return record


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_STEP


def _number(value: Any) -> float | None:
    """A number as the log writes it, also one that is not finite; None for anything else."""
    if isinstance(value, str):
        return _NOT_FINITE.get(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    if abs(number) >= LARGEST:
        return math.copysign(math.inf, number)
    return number if abs(number) > 1 / LARGEST or math.isnan(number) else 0.0


def _table(value: Any, dims: int) -> np.ndarray | None:
    """A list of numbers, or of lists of the same length, by layer. A layer without experts (null) is NaN. None for anything else."""
    if not isinstance(value, list) or all(layer is None for layer in value):
        return None
    without_experts = [layer is None for layer in value]
    rows = value if dims == 2 else [[layer] for layer in value]
    width = len(rows[without_experts.index(False)]) if isinstance(rows[without_experts.index(False)], list) else 0
    rows = [[math.nan] * width if absent else row for row, absent in zip(rows, without_experts)]
    if not all(isinstance(row, list) and row and len(row) == width for row in rows) or len(rows) * width > MOST_CELLS:
        return None
    numbers = [[_number(cell) for cell in row] for row in rows]
    if any(cell is None for row in numbers for cell in row):
        return None
    table = np.array(numbers, dtype=np.float64)
    table[~(np.abs(table) <= LARGEST_CELL)] = np.nan
    return table if dims == 2 else table[:, 0]


def _start_value(key: str, value: Any) -> Any:
    if key in ("started_after", "ranks"):
        return value if _is_step(value) else None
    return None if value is None else shortened(value, _LONGEST_WORD)

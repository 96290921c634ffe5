"""A run's folder, read: metrics.jsonl, and the job that was resolved for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from conclave.report.errors import ReportError

START_KEYS = ("started_after", "ranks", "device", "compute", "conclave_version", "torch_version")
MOST_TABLES = 400  # of one by-layer value over time; a longer run keeps every second, fourth, ... of them


@dataclass
class Tables:
    """A list-valued metric over time: values[i], [L] or [L, E], is of step steps[i]. The newest is always there."""

    steps: np.ndarray
    values: np.ndarray


@dataclass
class Run:
    """What a run's folder says."""

    folder: Path
    steps: np.ndarray  # int64 [N], ascending
    scalars: dict[str, np.ndarray]  # float64 [N] by metric; NaN where a step has none
    tables: dict[str, Tables]
    starts: list[dict[str, Any]]  # START_KEYS of each start of the program, in the order of steps
    job: dict[str, Any]  # empty where job.yaml is missing
    flaws: list[str] = field(default_factory=list)  # what was left out, in words

    def __contains__(self, name: str) -> bool:
        """Whether any step has a value of that name."""
        return name in self.scalars and bool(np.isfinite(self.scalars[name]).any())

    def key(self, section: str, name: str) -> Any:
        """A value of the job; None where it is not known."""
        return (self.job.get(section) or {}).get(name)

    def last(self, name: str) -> float:
        """The newest value of a metric; NaN if there is none."""
        values = self.scalars.get(name, np.array([]))
        known = values[~np.isnan(values)]
        return float(known[-1]) if len(known) else float("nan")


class _TableCollector:
    """Keeps at most MOST_TABLES of a growing list, evenly over the steps, and the newest."""

    def __init__(self) -> None:
        self._stride = 1
        self._seen = 0
        self._kept: list[tuple[int, list]] = []
        self._newest: tuple[int, list] | None = None

    def add(self, step: int, value: list) -> None:
        self._newest = (step, value)
        if self._seen % self._stride == 0:
            self._kept.append(self._newest)
        self._seen += 1
        if len(self._kept) > MOST_TABLES:
            self._kept = self._kept[::2]
            self._stride *= 2

    def tables(self) -> Tables:
        kept = self._kept if self._kept[-1][0] == self._newest[0] else [*self._kept, self._newest]
        return Tables(np.array([step for step, _ in kept]), np.array([value for _, value in kept], dtype=np.float64))


def _number(value: Any) -> float | None:
    """A number as the log writes it ("NaN" and "Infinity" are text there); None for anything else."""
    if isinstance(value, bool) or value is None or isinstance(value, (list, dict)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


class _Reader:
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.scalars: dict[str, list[float]] = {}
        self.tables: dict[str, _TableCollector] = {}
        self.starts: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any]) -> None:
        step = record["step"]
        self.steps.append(step)
        for name, value in record.items():
            if name == "step" or name in START_KEYS:
                continue
            if name.endswith("_by_layer"):
                self.tables.setdefault(name, _TableCollector()).add(step, value)
            elif (number := _number(value)) is not None:
                column = self.scalars.setdefault(name, [])
                column.extend([float("nan")] * (len(self.steps) - 1 - len(column)))
                column.append(number)
        if "started_after" in record:
            self.starts.append({key: record.get(key) for key in START_KEYS})

    def column(self, values: list[float]) -> np.ndarray:
        return np.array(values + [float("nan")] * (len(self.steps) - len(values)))


def _read_job(file: Path, flaws: list[str]) -> dict[str, Any]:
    if not file.exists():
        flaws.append("there is no job.yaml: the job is not known")
        return {}
    try:
        job = yaml.safe_load(file.read_text(errors="replace"))
    except yaml.YAMLError:
        job = None
    if not isinstance(job, dict):
        flaws.append("job.yaml cannot be read as YAML: the job is not known")
        return {}
    return job


def read_run(folder: Path) -> Run:
    """Read a run's folder, also while the run writes it.

    Lines that are not whole records are left out and counted in `flaws`; the last line of a run that is writing may be one.

    Raises:
        ReportError: there is no metrics.jsonl, or no whole record in it.
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise ReportError(f"{folder} holds no metrics.jsonl. Give the folder of a run (run.output_dir) that has done a step.")
    reader, flaws = _Reader(), []
    unreadable, last_is_torn, out_of_order = 0, False, 0
    with open(file, "rb") as lines:
        for line in lines:
            record = _record(line)
            last_is_torn = record is None
            unreadable += record is None
            if record is None:
                continue
            if reader.steps and record["step"] <= reader.steps[-1]:
                out_of_order += 1
                continue
            reader.add(record)
    if last_is_torn:
        unreadable -= 1
        flaws.append("the last line of metrics.jsonl is not whole, as while a run writes it or after it was killed")
    if unreadable:
        flaws.append(f"{unreadable} lines of metrics.jsonl are no records and were left out")
    if out_of_order:
        flaws.append(f"{out_of_order} records of metrics.jsonl are of steps that came before and were left out")
    if not reader.steps:
        raise ReportError(f"{file} holds no whole record yet. Wait for the run's first step.")
    job = _read_job(folder / "job.yaml", flaws)
    return Run(
        folder=folder,
        steps=np.array(reader.steps, dtype=np.int64),
        scalars={name: reader.column(values) for name, values in reader.scalars.items()},
        tables={name: collector.tables() for name, collector in reader.tables.items()},
        starts=reader.starts,
        job=job,
        flaws=flaws,
    )

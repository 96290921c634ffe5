"""A run's folder, read: metrics.jsonl, and the job that was resolved for it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from conclave.printable import printable
from conclave.report.errors import ReportError
from conclave.report.job_file import read_job
from conclave.report.record import Record, read_record

MOST_TABLES = 400  # of one by-layer value over time; a longer run keeps every second, fourth, ... of them
MOST_METRICS = 500  # names
MOST_STARTS = 200  # the newest
MOST_SAMPLED_STEPS = 10  # the newest
LONGEST_LINE = 1 << 24


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
    starts: list[dict[str, Any]]  # START_KEYS of the newest starts of the program, in the order of steps
    job: dict[str, dict[str, Any]]  # empty where job.yaml is missing
    flaws: list[str] = field(default_factory=list)  # what was left out, in words
    samples: list[tuple[int, list[str]]] = field(default_factory=list)  # texts of the model with their steps, the newest of them

    def __contains__(self, name: str) -> bool:
        """Whether any step has a value of that name."""
        return name in self.scalars and bool(np.isfinite(self.scalars[name]).any())

    def key(self, section: str, name: str) -> Any:
        """A value of the job; None where it is not known."""
        return self.job.get(section, {}).get(name)

    def finite(self, name: str) -> np.ndarray:
        """A metric [N] with NaN for what is not finite; all NaN if there is none of that name."""
        values = self.scalars.get(name, np.full(len(self.steps), np.nan))
        return np.where(np.isfinite(values), values, np.nan)

    def most(self, name: str) -> float:
        """The largest finite value of a metric; 0 if there is none."""
        return float(np.max(self.finite(name), initial=0.0, where=np.isfinite(self.finite(name))))

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
        self._kept: list[tuple[int, np.ndarray]] = []
        self._newest: tuple[int, np.ndarray] | None = None

    def fits(self, value: np.ndarray) -> bool:
        """Whether it has the shape of those that are there."""
        return self._newest is None or self._newest[1].shape == value.shape

    def add(self, step: int, value: np.ndarray) -> None:
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


class _Reader:
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.scalars: dict[str, list[float]] = {}
        self.tables: dict[str, _TableCollector] = {}
        self.starts: deque[dict[str, Any]] = deque(maxlen=MOST_STARTS)
        self.started = 0
        self.samples: deque[tuple[int, list[str]]] = deque(maxlen=MOST_SAMPLED_STEPS)
        self.damaged_values = 0
        self.unreadable = 0
        self.out_of_order = 0
        self.last_is_torn = False
        self._newest: Record | None = None  # not added yet: the next one says whether its step can be right

    def read(self, lines: BinaryIO) -> None:
        while line := lines.readline(LONGEST_LINE):
            record = read_record(line)
            while len(line) == LONGEST_LINE and not line.endswith(b"\n"):  # the rest of a line that is no record of ours
                line = lines.readline(LONGEST_LINE)
            self.last_is_torn = record is None
            self.unreadable += record is None
            if record is not None:
                self._take(record)
        if self._newest is not None:
            self._add(self._newest)

    def flaws(self) -> list[str]:
        flaws = []
        if self.last_is_torn:
            flaws.append("the last line of metrics.jsonl is not whole, as while a run writes it or after it was killed")
        if unreadable := self.unreadable - self.last_is_torn:
            flaws.append(f"{unreadable} lines of metrics.jsonl are no records and were left out")
        if self.out_of_order:
            flaws.append(f"{self.out_of_order} records of metrics.jsonl are of steps out of order and were left out")
        if self.damaged_values:
            flaws.append(f"{self.damaged_values} values in metrics.jsonl are not what their names say and were left out")
        if self.started > len(self.starts):
            flaws.append(f"of {self.started} starts of the program the newest {len(self.starts)} are shown")
        return flaws

    def column(self, values: list[float]) -> np.ndarray:
        return np.array(values + [float("nan")] * (len(self.steps) - len(values)))

    def _take(self, record: Record) -> None:
        """Steps ascend. One that does not follow is left out; one that only ran ahead (a damaged number) does not take the later ones with it."""
        if self.steps and record.step <= self.steps[-1]:
            self.out_of_order += 1
            return
        if self._newest is not None and record.step > self._newest.step:
            self._add(self._newest)
        elif self._newest is not None:
            self.out_of_order += 1
        self._newest = record

    def _add(self, record: Record) -> None:
        self.steps.append(record.step)
        self.damaged_values += record.damaged_values
        for name, value in record.scalars.items():
            if name not in self.scalars and len(self.scalars) >= MOST_METRICS:
                self.damaged_values += 1
                continue
            column = self.scalars.setdefault(name, [])
            column.extend([float("nan")] * (len(self.steps) - 1 - len(column)))
            column.append(value)
        for name, table in record.tables.items():
            if name not in self.tables and len(self.tables) >= MOST_METRICS or not self.tables.setdefault(name, _TableCollector()).fits(table):
                self.damaged_values += 1
            else:
                self.tables[name].add(record.step, table)
        if record.samples:
            self.samples.append((record.step, record.samples))
        if record.start is not None:
            self.starts.append(record.start)
            self.started += 1


def read_run(folder: Path) -> Run:
    """Read a run's folder, also while the run writes it.

    Lines that are not whole records, and values that cannot be drawn, are left out and counted in `flaws`; the last line of a run that is writing may
    be one.

    Raises:
        ReportError: there is no metrics.jsonl, or no whole record in it, or it cannot be read.
    """
    file = folder / "metrics.jsonl"
    reader, flaws = _Reader(), []
    try:
        if not file.is_file():
            raise ReportError(f"{printable(folder)} holds no metrics.jsonl. Give the folder of a run (run.output_dir) that has done a step.")
        with open(file, "rb") as lines:
            reader.read(lines)
        flaws += reader.flaws()
        job = read_job(folder / "job.yaml", flaws)
    except (OSError, ValueError) as error:
        raise ReportError(f"{printable(getattr(error, 'filename', None) or folder)} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not reader.steps:
        raise ReportError(f"{printable(file)} holds no whole record yet. Wait for the run's first step.")
    return Run(
        folder=folder,
        steps=np.array(reader.steps, dtype=np.int64),
        scalars={name: reader.column(values) for name, values in reader.scalars.items()},
        tables={name: collector.tables() for name, collector in reader.tables.items()},
        starts=list(reader.starts),
        job=job,
        flaws=flaws,
        samples=list(reader.samples),
    )

"""Curves of several runs in one picture, over the tokens they were trained on or over the time that took."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from conclave.report.charts import GIBIBYTE, SERIES, draw_curve, keep_range_readable, new_axes, svg_of
from conclave.report.record import LARGEST
from conclave.report.run import Run

MOST_RUNS = len(SERIES)  # one colour each


@dataclass
class NamedRun:
    """A run with a name that no other one of the page has."""

    name: str
    run: Run


def tokens_of(run: Run) -> np.ndarray:
    """Tokens until each step [N], NaN where they are not known."""
    return run.finite("tokens")


def hours_of(run: Run) -> np.ndarray:
    """Hours of training until each step [N]: the steps' own durations, without what lay between a stop and the next start."""
    seconds = run.finite("step_seconds")
    seconds = np.where((seconds >= 0) & (seconds < LARGEST), seconds, 0.0)
    return np.cumsum(seconds) / 3600 if "step_seconds" in run else np.full(len(run.steps), np.nan)


def compared(runs: list[NamedRun], metric: str, over: str, name: str, *, loss: bool = False, scale: float = 1.0, unit: str = "", markers: bool = False) -> str | None:
    """One metric of all runs. `over`: tokens or hours. None if no run has it."""
    present = [(index, run) for index, run in enumerate(runs) if metric in run.run]
    if not present:
        return None
    figure, axes = new_axes(height=3.1)
    drawn = []
    for index, named in present:
        at = tokens_of(named.run) if over == "tokens" else hours_of(named.run)
        values = named.run.finite(metric) / scale
        known = np.isfinite(at) & np.isfinite(values) & (np.abs(at) < LARGEST)
        draw_curve(axes, at[known], values[known], SERIES[index], named.name, **({"marker": "o", "markersize": 3} if markers else {}))
        drawn.append(values[known])
    if loss and any(len(values) for values in drawn):
        keep_range_readable(axes, np.concatenate(drawn))
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    _finish(axes, over, unit)
    return svg_of(figure, name)


def _finish(axes: Axes, over: str, unit: str) -> None:
    axes.set_ylabel(unit)
    axes.set_xlabel("tokens" if over == "tokens" else "hours of training", fontsize=8.5, color="#4a5563")
    if over == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if unit == "tokens/s":
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def memory_in_gibibytes(runs: list[NamedRun]) -> str | None:
    return compared(runs, "peak_memory_bytes", "tokens", "compared-memory", scale=GIBIBYTE, unit="GiB")

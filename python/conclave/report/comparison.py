"""The page that compares runs: their results side by side, curves over tokens and time, and the settings that differ."""

from __future__ import annotations

import html
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from conclave.printable import printable, shortened
from conclave.report.charts import GIBIBYTE, SERIES
from conclave.report.comparison_charts import MOST_RUNS, NamedRun, compared, hours_of, memory_in_gibibytes, tokens_of
from conclave.report.errors import ReportError
from conclave.report.run import Run
from conclave.report.sheet import figure_of, flaws_of, section_of, table_of, whole_page

_LONGEST_NAME = 40
_ABSENT = object()


def named_runs(runs: list[Run]) -> list[NamedRun]:
    """Each run by the name of its job; runs of one name by their folders, which differ.

    Raises:
        ReportError: more runs than there are colours, or one of them twice.
    """
    if len(runs) > MOST_RUNS:
        raise ReportError(f"{len(runs)} runs are too many for one page. Give at most {MOST_RUNS}.")
    places = Counter(run.folder.resolve() for run in runs)
    if twice := [place for place, count in places.items() if count > 1]:
        raise ReportError(f"{printable(twice[0])} is given twice. Give each run once.")
    names = [shortened(run.key("run", "name") or run.folder.resolve().name, _LONGEST_NAME) for run in runs]
    counts = Counter(names)
    return [NamedRun(name if counts[name] == 1 else f"{name} ({_last_parts(run.folder)})", run) for name, run in zip(names, runs)]


def _last_parts(folder: Path) -> str:
    parts = folder.resolve().parts[-2:]
    return shortened("/".join(parts), _LONGEST_NAME)


def _number(value: float, digits: int = 0, unit: str = "") -> str:
    return f"{value:,.{digits}f}{unit}" if math.isfinite(value) else "&ndash;"


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def _lowest(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.min()) if len(known) else math.nan


def _newest(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else math.nan


def _swatch(index: int) -> str:
    return f'<span class="swatch" style="background:{SERIES[index]}"></span>'


def _results(runs: list[NamedRun]) -> str:
    head = ("run", "steps", "tokens", "hours", "loss", "validation", "lowest", "tokens/s", "peak memory", "imbalance", "skipped")
    rows = []
    for index, named in enumerate(runs):
        run = named.run
        rows.append([
            _swatch(index) + html.escape(named.name),
            f"{int(run.steps[-1]):,}",
            _number(_newest(tokens_of(run)) / 1e6, 2, " M"),
            _number(_newest(hours_of(run)), 2),
            _number(_newest(run.finite("lm_loss")), 4),
            _number(_newest(run.finite("validation_loss")), 4),
            _number(_lowest(run.finite("validation_loss")), 4),
            _number(_median(run.finite("tokens_per_second"))),
            _number(run.most("peak_memory_bytes") / GIBIBYTE, 2, " GiB") if "peak_memory_bytes" in run else "&ndash;",
            _number(_newest(run.finite("expert_imbalance")), 2),
            f"{int((run.finite('skipped') > 0).sum()):,}",
        ])
    return table_of(head, rows)


def _in_yaml(value: Any) -> str:
    if value is _ABSENT:
        return "&ndash;"
    if value is None:
        return "null"
    return html.escape(str(value).lower() if isinstance(value, bool) else str(value))


def differing_settings(runs: list[NamedRun]) -> list[tuple[str, list[Any]]]:
    """Keys whose values differ between the jobs that are known, with each run's value."""
    keys = sorted({(section, key) for named in runs for section, values in named.run.job.items() for key in values})
    found = []
    for section, key in keys:
        values = [named.run.job.get(section, {}).get(key, _ABSENT) for named in runs]
        # NaN differs from itself; texts do not.
        if len({str(value) for value, named in zip(values, runs) if named.run.job}) > 1:
            found.append((f"{section}.{key}", values))
    return found


def _settings(runs: list[NamedRun]) -> str:
    if not any(named.run.job for named in runs):
        return "<p>No job of these runs is known.</p>"
    rows = [[html.escape(key), *(_in_yaml(value) for value in values)] for key, values in differing_settings(runs)]
    return table_of(["key", *(named.name for named in runs)], rows) if rows else "<p>None: the jobs are equal.</p>"


def _curves(runs: list[NamedRun]) -> list[str]:
    return [
        figure_of("Loss by tokens", "Cross-entropy of the next token", compared(runs, "lm_loss", "tokens", "compared-loss-tokens", loss=True)),
        figure_of("Loss by time", "Of the steps alone, without pauses", compared(runs, "lm_loss", "hours", "compared-loss-hours", loss=True)),
        figure_of("Validation loss by tokens", "", compared(runs, "validation_loss", "tokens", "compared-validation", loss=True, markers=True)),
        figure_of("Validation loss by time", "", compared(runs, "validation_loss", "hours", "compared-validation-hours", loss=True, markers=True)),
        figure_of("Tokens per second", "All ranks together", compared(runs, "tokens_per_second", "tokens", "compared-speed", unit="tokens/s")),
        figure_of("Peak tensor memory", "Of the rank with the most", memory_in_gibibytes(runs)),
        figure_of("Imbalance", "Tokens of the busiest expert over the mean; 1 is even", compared(runs, "expert_imbalance", "tokens", "compared-imbalance")),
        figure_of("Gradient norm", "", compared(runs, "grad_norm", "tokens", "compared-gradient-norm", loss=True)),
    ]


def comparison_of(runs: list[NamedRun]) -> str:
    """The whole page as one text."""
    flaws = [f"{named.name}: {flaw}" for named in runs for flaw in named.run.flaws]
    return whole_page(f"{len(runs)} runs compared", html.escape(", ".join(named.name for named in runs)), f"""
{flaws_of(flaws)}<h2>Results</h2>{_results(runs)}
{section_of("Curves", _curves(runs))}
<h2>Settings that differ</h2>{_settings(runs)}""")

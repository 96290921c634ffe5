"""Curves over the steps of a run, drawn by matplotlib as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from conclave.report.record import LARGEST
from conclave.report.run import Run

MOST_CATEGORIES = 20  # of memory, the largest
MOST_POINTS = 800  # of a curve; more steps are drawn as the mean of neighbours and the band they lie in
BLUE, ORANGE, GREEN, RED, GREY = "#2563a8", "#d9702b", "#2f8f5b", "#c0392b", "#8a939e"
SERIES = (BLUE, ORANGE, GREEN, "#7b5ea7", "#b8923a", "#3a9aa8", RED, "#5f6b78", "#c77fae", "#9aa84f")
GIBIBYTE = 2**30

STYLE = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # and is no mathematics
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c3c9d0",
    "axes.labelcolor": "#4a5563",
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#4a5563",
    "ytick.color": "#4a5563",
    "lines.linewidth": 1.5,
    "lines.solid_joinstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
matplotlib.rcParams.update(STYLE)  # of this process, which draws nothing but a report


def svg_of(figure: Figure, name: str, transparent: bool = True) -> str:
    """The figure as an <svg> element. `name` makes its ids different from those of other figures on the page."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=transparent)
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Ids that matplotlib numbers in each figure anew.
    return re.sub(r'(id="|href="#|url\(#)(?=[a-zA-Z])', rf"\g<1>{name}-", svg)


def new_axes(height: float = 2.7, width: float = 6.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, means, lowest and highest of at most MOST_POINTS groups of neighbours; values that are not finite, or as good as that, are left out."""
    drawable = np.abs(values) < LARGEST
    steps, values = steps[drawable], values[drawable]
    if len(steps) <= MOST_POINTS:
        return steps, values, values, values
    begins = np.linspace(0, len(steps), MOST_POINTS + 1).astype(int)[:-1]
    counts = np.diff([*begins, len(steps)])
    mean = np.add.reduceat(values, begins) / counts
    middle = np.add.reduceat(steps.astype(np.float64), begins) / counts
    return middle, mean, np.minimum.reduceat(values, begins), np.maximum.reduceat(values, begins)


def draw_curve(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, label: str | None = None, **line: object) -> None:
    at, mean, low, high = thinned(steps, values)
    if len(at) == 1:
        line["marker"] = "o"
    axes.plot(at, mean, color=color, label=label, **line)
    if len(at) and not np.array_equal(low, high):
        axes.fill_between(at, low, high, color=color, alpha=0.18, linewidth=0)


def finish_axes(axes: Axes, run: Run, unit: str = "") -> None:
    """Everything along the bottom: steps, and where the run was started again."""
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    first, last = run.steps[0], run.steps[-1]
    margin = max((last - first) * 0.01, 0.5)
    axes.set_xlim(first - margin, last + margin)
    for start in run.starts:
        if start["started_after"] and first <= start["started_after"] <= last:
            axes.axvline(start["started_after"], color=GREY, linewidth=1, linestyle=(0, (2, 3)), zorder=0.5)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(ncols=5, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1, handlelength=1.3, columnspacing=1.2)


def keep_range_readable(axes: Axes, values: np.ndarray, settled: float = 0.1) -> None:
    """Cuts off the peaks of the first steps, which would press the rest flat: the range is that of the steps after them, with room."""
    finite = values[np.abs(values) < LARGEST]
    rest = finite[int(len(finite) * settled) :]
    if len(rest) < 20:
        return
    low, high = rest.min(), rest.max()
    room = max((high - low) * 0.25, abs(high) * 0.02)
    axes.set_ylim(min(low - room, axes.get_ylim()[1]), min(high + room * 2, axes.get_ylim()[1]))


def curve_chart(run: Run, name: str, curves: Iterable[tuple[str, str | None]], unit: str, *, log: bool = False, zero: bool = False,
                engineering: bool = False) -> str | None:
    """Curves of metrics, (name, label) each, over the steps. None if the run has none of them."""
    present = [(metric, label) for metric, label in curves if metric in run]
    if not present:
        return None
    figure, axes = new_axes()
    for color, (metric, label) in zip(SERIES, present):
        draw_curve(axes, run.steps, run.scalars[metric], color, label)
    if log and all((run.scalars[metric][np.isfinite(run.scalars[metric])] > 0).all() for metric, _ in present):
        axes.set_yscale("log")
    elif zero:
        axes.set_ylim(bottom=0)
    if engineering:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    elif not log:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    finish_axes(axes, run, unit)
    return svg_of(figure, name)


def loss_chart(run: Run) -> str | None:
    """Training loss, and validation loss where there was one."""
    if "lm_loss" not in run:
        return None
    figure, axes = new_axes(height=3.1)
    training = run.scalars["lm_loss"]
    draw_curve(axes, run.steps, training, BLUE, "training")
    if "validation_loss" in run:
        validation = run.scalars["validation_loss"]
        there = np.isfinite(validation)
        axes.plot(run.steps[there], validation[there], color=ORANGE, marker="o", markersize=4.5, linewidth=1.2, label="validation")
    finish_axes(axes, run, "nats per token")
    return svg_of(figure, "loss")


def set_losses_chart(run: Run) -> str | None:
    """The loss of each source of a blend, and of each validation set that has a name."""
    names = [name for name in run.scalars if name.startswith(("source/", "validation/")) and name.endswith("/loss") and name in run][:MOST_CATEGORIES]
    if not names:
        return None
    figure, axes = new_axes(height=3.1)
    for color, name in zip(SERIES, names):
        there = np.isfinite(run.scalars[name])
        kind, label, _ = name.split("/")
        if kind == "source":
            draw_curve(axes, run.steps[there], run.scalars[name][there], color, label)
        else:
            axes.plot(run.steps[there], run.scalars[name][there], color=color, marker="o", markersize=4.5, linewidth=1.2, label=f"validation: {label}")
    finish_axes(axes, run, "nats per token")
    return svg_of(figure, "set-losses")


def gradient_norm_chart(run: Run) -> str | None:
    """The norm before clipping, the clip, and the steps that were skipped."""
    if "grad_norm" not in run:
        return None
    figure, axes = new_axes()
    norms = run.scalars["grad_norm"]
    draw_curve(axes, run.steps, norms, BLUE, "norm before clipping")
    clip = run.key("optimizer", "grad_clip")
    if isinstance(clip, (int, float)) and 0 < clip < LARGEST:
        axes.axhline(clip, color=GREY, linewidth=1, linestyle="--", label=f"clipped at {clip:g}")
    if "skipped" in run and (run.scalars["skipped"] > 0).any():
        skipped = run.steps[run.scalars["skipped"] > 0]
        axes.plot(skipped, np.full(len(skipped), 0.02), "x", color=RED, transform=axes.get_xaxis_transform(), label="skipped: not finite", clip_on=False)
    if (norms[np.isfinite(norms)] > 0).all():
        axes.set_yscale("log")
    finish_axes(axes, run)
    return svg_of(figure, "gradient-norm")


def memory_chart(run: Run) -> str | None:
    """Tensor memory at the peak of each step, by category, and what the process held at most."""
    categories = [name for name in run.scalars if name.startswith("memory/") and run.most(name) > 0]
    if not categories and "peak_resident_bytes" not in run:
        return None
    figure, axes = new_axes()
    held = {name: np.nan_to_num(run.finite(name)) for name in categories}  # a step that says nothing of a category held none of it
    categories = sorted(categories, key=lambda name: -held[name].mean())[:MOST_CATEGORIES]
    if categories:
        points = [thinned(run.steps, held[name]) for name in categories]
        axes.stackplot(points[0][0], [mean / GIBIBYTE for _, mean, _, _ in points], labels=[name.removeprefix("memory/").replace("_", " ") for name in categories],
                       colors=[SERIES[i % len(SERIES)] for i in range(len(categories))], alpha=0.75, linewidth=0)
    if "peak_resident_bytes" in run:
        draw_curve(axes, run.steps, run.scalars["peak_resident_bytes"] / GIBIBYTE, "#1f2933", "process at most", linestyle="--", linewidth=1.2)
    axes.set_ylim(bottom=0)
    finish_axes(axes, run, "GiB of the fullest rank")
    if axes.get_legend():
        axes.get_legend().remove()
    figure.legend(loc="outside right center", fontsize=8, reverse=True, handlelength=1.1)
    return svg_of(figure, "memory")


def waiting_chart(run: Run) -> str | None:
    """What part of a step the slowest rank waited, and for what."""
    waits = [("data_seconds", "data"), ("gather_wait_seconds", "parameters"), ("reduce_wait_seconds", "sums"), ("dispatch_wait_seconds", "routed rows"),
             ("offload_wait_seconds", "offloaded inputs"), ("save_stall_seconds", "checkpoints")]
    present = [(name, label) for name, label in waits if run.most(name) > 0]
    if not present or "step_seconds" not in run:
        return None
    figure, axes = new_axes()
    shares = [100 * run.finite(name) / run.finite("step_seconds") for name, _ in present]
    for color, (_, label), share in zip(SERIES, present, shares):
        draw_curve(axes, run.steps, share, color, label, linewidth=1.2)
    axes.set_ylim(bottom=0)
    keep_range_readable(axes, np.nanmax(np.stack(shares), axis=0), 0.02)
    axes.set_ylim(bottom=0)
    finish_axes(axes, run, "% of the step")
    return svg_of(figure, "waiting")

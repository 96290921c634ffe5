"""How tokens were spread over the experts: curves and heat maps."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from conclave.report.charts import BLUE, GREY, SERIES, draw_curve, finish_axes, new_axes, svg_of, thinned
from conclave.report.run import Run

MOST_LINES = 8  # layers that get a line of their own; more are a band
MOST_NUMBERS = 160  # cells of a heat map that still have room for their number
SNAPSHOTS = 6
EVEN = 1.3  # a max / mean below this is called even; the same number as in docs/balancing.md


def imbalance_chart(run: Run) -> str | None:
    """Max / mean tokens of an expert: the mean over the layers, and each layer's."""
    if "expert_imbalance" not in run:
        return None
    figure, axes = new_axes(height=3.1)
    layers = run.tables.get("expert_imbalance_by_layer")
    drawn = [] if layers is None else np.flatnonzero(np.isfinite(layers.values).any(0))  # others have no experts
    if len(drawn) > 1:
        if len(drawn) <= MOST_LINES:
            for layer in drawn:
                draw_curve(axes, layers.steps, layers.values[:, layer], SERIES[(layer + 1) % len(SERIES)], f"layer {layer}", linewidth=0.9, alpha=0.75)
        else:
            of_layers = layers.values[:, drawn]
            axes.fill_between(layers.steps, of_layers.min(1), of_layers.max(1), color=BLUE, alpha=0.18, linewidth=0, label="all layers")
    draw_curve(axes, run.steps, run.scalars["expert_imbalance"], BLUE, "mean", linewidth=2)
    axes.axhline(EVEN, color=GREY, linewidth=1, linestyle="--")
    axes.set_ylim(bottom=1)
    finish_axes(axes, run, "max / mean")
    return svg_of(figure, "imbalance")


def router_chart(run: Run) -> str | None:
    """How even the load is and how sure the router is, both from 0 to 1."""
    curves = [("load_entropy", "entropy of the load / log E"), ("router_confidence", "confidence: mean highest probability")]
    present = [(name, label) for name, label in curves if name in run]
    if not present:
        return None
    figure, axes = new_axes()
    for color, (name, label) in zip(SERIES, present):
        draw_curve(axes, run.steps, run.scalars[name], color, label)
    axes.set_ylim(0, 1.02)
    axes.set_yticks(np.linspace(0, 1, 6))
    finish_axes(axes, run)
    return svg_of(figure, "router")


def losses_chart(run: Run) -> str | None:
    """The balancing losses, without their coefficients."""
    present = [(name, label) for name, label in (("aux_loss", "aux loss"), ("z_loss", "z-loss")) if name in run]
    if not present:
        return None
    figure = Figure(figsize=(6.2, 2.7), layout="constrained")
    axes = figure.subplots(1, len(present), squeeze=False)[0]
    for each, color, (name, label) in zip(axes, SERIES, present):
        draw_curve(each, run.steps, run.scalars[name], color)
        finish_axes(each, run)
        each.set_title(label, fontsize=9, loc="left")
        each.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return svg_of(figure, "balancing-losses")


def dead_experts_chart(run: Run) -> str | None:
    """Experts that got next to nothing for long, and tokens dropped."""
    if "dead_experts" not in run:
        return None
    figure, axes = new_axes()
    at, mean, _, _ = thinned(run.steps, run.scalars["dead_experts"])
    axes.fill_between(at, mean, step="post", color=BLUE, alpha=0.3, linewidth=0)
    axes.step(at, mean, where="post", color=BLUE, label="dead experts, of all layers")
    axes.set_ylim(0, max(1.0, run.most("dead_experts")) * 1.3)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if run.most("drop_rate") > 0:
        right = axes.twinx()
        right.grid(False)
        draw_curve(right, run.steps, 100 * run.scalars["drop_rate"], SERIES[1], "dropped choices")
        right.set_ylabel("% of choices dropped", color=SERIES[1])
        right.set_ylim(bottom=0)
    finish_axes(axes, run, "experts")
    return svg_of(figure, "dead-experts")


def _draw_shares(axes: Axes, load_LE: np.ndarray, norm: TwoSlopeNorm, most_ticks: int, numbers: bool = False) -> AxesImage:
    image = axes.imshow(load_LE, cmap="RdBu_r", norm=norm, aspect="auto", interpolation="nearest")
    image.cmap.set_bad(GREY, 0.25)  # a layer without experts
    axes.grid(False)
    axes.spines[:].set_visible(False)
    for axis, count in ((axes.xaxis, load_LE.shape[1]), (axes.yaxis, load_LE.shape[0])):
        axis.set_major_locator(MaxNLocator(min(count, most_ticks), integer=True, min_n_ticks=1))
    axes.tick_params(length=0)
    if numbers:
        for (layer, expert), load in np.ndenumerate(load_LE):
            if not np.isfinite(load):
                continue
            dark = abs(norm(load) - 0.5) > 0.3
            axes.text(expert, layer, f"{load:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "#1f2933")
    return image


def _loads(run: Run) -> tuple[np.ndarray, np.ndarray, TwoSlopeNorm] | None:
    """Steps, each expert's load over the fair one [n, L, E], and the colours: white is fair."""
    shares = run.tables.get("expert_share_by_layer")
    if shares is None:
        return None
    loads = shares.values * shares.values.shape[2]
    if not np.isfinite(loads[-1]).any():
        return None
    return shares.steps, loads, TwoSlopeNorm(1.0, 0.0, max(2.0, float(np.nanmax(loads[-1]))))


def _color_bar(figure: Figure, image: AxesImage, axes: object) -> None:
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.04, extend="max")
    bar.outline.set_visible(False)
    bar.set_label("load / fair load", color="#4a5563")


def share_heat_map(run: Run) -> tuple[str, int] | None:
    """Load of every expert of every layer in the newest step that has it, and that step."""
    if (found := _loads(run)) is None:
        return None
    steps, loads, norm = found
    layers, experts = loads.shape[1:]
    figure = Figure(figsize=(6.2, min(5.4, max(2.3, 0.9 + 0.3 * layers))), layout="constrained")
    axes = figure.add_subplot()
    _color_bar(figure, _draw_shares(axes, loads[-1], norm, 16, numbers=layers * experts <= MOST_NUMBERS), axes)
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    return svg_of(figure, "share-latest"), int(steps[-1])


def share_snapshots(run: Run) -> str | None:
    """The same map at steps from the first to the newest."""
    if (found := _loads(run)) is None or len(found[0]) < 2:
        return None
    steps, loads, norm = found
    chosen = np.unique(np.linspace(0, len(steps) - 1, SNAPSHOTS).round().astype(int))
    rows = (len(chosen) + 2) // 3
    height = min(3.2, max(1.35, 0.5 + 0.22 * loads.shape[1]))
    figure = Figure(figsize=(6.2, 0.3 + height * rows), layout="constrained")
    grid = figure.subplots(rows, min(3, len(chosen)), squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    for axes, index in zip(grid.flat, chosen):
        image = _draw_shares(axes, loads[index], norm, most_ticks=5)
        axes.set_title(f"step {steps[index]:,}", fontsize=9, loc="left")
    _color_bar(figure, image, grid)
    figure.supxlabel("expert", fontsize=9, color="#4a5563")
    figure.supylabel("layer", fontsize=9, color="#4a5563")
    return svg_of(figure, "share-snapshots")


def imbalance_map(run: Run) -> str | None:
    """Max / mean of every layer over the steps."""
    layers = run.tables.get("expert_imbalance_by_layer")
    if layers is None or len(layers.steps) < 2 or not np.isfinite(layers.values).any():
        return None
    figure, axes = new_axes(height=min(5.0, max(2.2, 1.0 + 0.2 * layers.values.shape[1])))
    edges = np.concatenate([[layers.steps[0] - 0.5], (layers.steps[1:] + layers.steps[:-1]) / 2, [layers.steps[-1] + 0.5]])
    mesh = axes.pcolormesh(edges, np.arange(layers.values.shape[1] + 1) - 0.5, layers.values.T, cmap="viridis", vmin=1,
                           vmax=max(1.01, float(np.nanmax(layers.values))), rasterized=True)
    finish_axes(axes, run)
    axes.grid(False)
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(MaxNLocator(min(layers.values.shape[1], 16), integer=True, min_n_ticks=1))
    axes.set_ylabel("layer")
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.04)
    bar.outline.set_visible(False)
    bar.set_label("max / mean", color="#4a5563")
    return svg_of(figure, "imbalance-map")

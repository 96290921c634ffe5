"""The page: numbers at a glance, charts, the job, the versions."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

import numpy as np

from conclave.printable import printable
from conclave.report import charts, load_charts
from conclave.report.run import Run
from conclave.report.sheet import figure_of, flaws_of, section_of, table_of, whole_page

@dataclass
class Tile:
    name: str
    value: str
    note: str = ""


def _fixed(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else "not finite"


def _tiles(run: Run) -> list[Tile]:
    tiles = []
    if "lm_loss" in run:
        tiles.append(Tile("Training loss", _fixed(run.last("lm_loss"), 4), f"step {run.steps[-1]:,}"))
    if "validation_loss" in run:
        losses = run.finite("validation_loss")
        best = int(np.nanargmin(losses))
        tiles.append(Tile("Validation loss", _fixed(run.last("validation_loss"), 4), f"lowest {losses[best]:.4f}, step {run.steps[best]:,}"))
    if "tokens" in run:
        tiles.append(Tile("Tokens trained on", f"{run.last('tokens') / 1e6:,.2f} M"))
    if "tokens_per_second" in run:
        note = f"{100 * run.last('mfu'):.0f} % of the product rate" if "mfu" in run else "median of all steps"
        tiles.append(Tile("Tokens/s", f"{np.nanmedian(run.finite('tokens_per_second')):,.0f}", note))
    if "peak_memory_bytes" in run:
        note = f"process {run.most('peak_resident_bytes') / charts.GIBIBYTE:.2f} GiB" if "peak_resident_bytes" in run else ""
        tiles.append(Tile("Peak tensor memory", f"{run.most('peak_memory_bytes') / charts.GIBIBYTE:.2f} GiB", note))
    if "expert_imbalance" in run:
        tiles.append(Tile("Expert imbalance", _fixed(run.last("expert_imbalance"), 2), "max / mean; 1 is even"))
    if "dead_experts" in run:
        layers = run.tables.get("expert_share_by_layer")
        tiles.append(Tile("Dead experts", f"{run.last('dead_experts'):.0f}", f"of {int(np.isfinite(layers.values).any(0).sum()):,}" if layers else ""))
    if run.most("drop_rate") > 0:
        tiles.append(Tile("Dropped choices", f"{100 * run.last('drop_rate'):.2f} %"))
    if skipped := int((run.finite("skipped") > 0).sum()):
        tiles.append(Tile("Skipped steps", f"{skipped:,}", "loss or gradient not finite"))
    return tiles


def _training(run: Run) -> list[str]:
    smooth = "; the band holds all steps" if len(run.steps) > charts.MOST_POINTS else ""
    return [
        figure_of("Loss", f"Cross-entropy of the next token{smooth}", charts.loss_chart(run)),
        figure_of("Losses by set", "Of each source of the blend, and of each validation set that has a name", charts.set_losses_chart(run)),
        figure_of("Gradient norm", "Of all parameters", charts.gradient_norm_chart(run)),
        figure_of("Learning rate", "", charts.curve_chart(run, "learning-rate", [("lr", None)], "", zero=True)),
        figure_of("Tokens per second", "All ranks together", charts.curve_chart(run, "tokens-per-second", [("tokens_per_second", None)], "", zero=True,
                                                                              engineering=True)),
    ]


def _experts(run: Run) -> list[str]:
    latest = load_charts.share_heat_map(run)
    return [
        figure_of("Imbalance", f"Tokens of the busiest expert over the mean; 1 is even, the dashed line {load_charts.EVEN}", load_charts.imbalance_chart(run)),
        figure_of("Load of each expert", f"Step {latest[1]:,}; white is fair, red too much, blue too little", latest[0]) if latest else "",
        figure_of("Imbalance by layer", "The same over the steps; dark is even", load_charts.imbalance_map(run)),
        figure_of("Load over time", "White is fair, red too much, blue too little", load_charts.share_snapshots(run)),
        figure_of("Router", "Entropy 1: all experts have the same load. Confidence 1: the router is sure of one expert", load_charts.router_chart(run)),
        figure_of("Dead experts", "Below 1 % of the mean load for 100 steps", load_charts.dead_experts_chart(run)),
        figure_of("Balancing losses", "Without their coefficients", load_charts.losses_chart(run)),
    ]


def _machine(run: Run) -> list[str]:
    return [
        figure_of("Memory", "Tensors at a step's peak by category, and what a process held at most so far", charts.memory_chart(run)),
        figure_of("Waiting", "What the slowest rank waited for", charts.waiting_chart(run)),
    ]


def _starts(run: Run) -> str:
    if not run.starts:
        return "<p>Not recorded by the version that ran.</p>"
    names = ("went on after step", "ranks", "device", "computed in", "Conclave", "PyTorch")
    return table_of(names, ([html.escape(str(value if value is not None else "")) for value in start.values()] for start in run.starts))


def _as_in_yaml(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _job(run: Run) -> str:
    sections = []
    for section, values in run.job.items():
        lines = "".join(f"<div><span>{html.escape(str(key))}</span><span>{html.escape(_as_in_yaml(value))}</span></div>"
                        for key, value in (values.items() if isinstance(values, dict) else ()))
        sections.append(f"<section><h3>{html.escape(str(section))}</h3>{lines}</section>")
    return f'<h2>Job</h2><div class="job">{"".join(sections)}</div>' if sections else ""


def _samples(run: Run) -> str:
    """What the model wrote, the newest first."""
    shown = "".join(f'<figure><h3>Step {step:,}</h3>{"".join(f"<pre>{html.escape(text)}</pre>" for text in texts)}</figure>'
                    for step, texts in reversed(run.samples))
    return f"<h2>Texts</h2>{shown}" if shown else ""


def _state(run: Run) -> str:
    steps, last = run.key("run", "steps"), int(run.steps[-1])
    if type(steps) is not int:
        return f"{last:,} steps done"
    return f"all {steps:,} steps done" if last >= steps else f"step {last:,} of {steps:,}: still running, or stopped"


def page_of(run: Run) -> str:
    """The whole page as one text, with nothing to be fetched from anywhere."""
    name = printable(run.key("run", "name") or run.folder.name)
    tiles = "".join(f'<div class="tile"><div class="name">{html.escape(tile.name)}</div><div class="value">{html.escape(tile.value)}</div>'
                    f'<div class="note">{html.escape(tile.note)}</div></div>' for tile in _tiles(run))
    resumed = sum(1 for start in run.starts if start["started_after"])
    resumes = f"; resumed {resumed} time{'s' if resumed > 1 else ''} (dotted lines)" if resumed else ""
    return whole_page(name, f"{html.escape(printable(run.folder))} &middot; {_state(run)}{resumes}", f"""
{flaws_of(run.flaws)}<div class="tiles">{tiles}</div>
{section_of("Training", _training(run))}
{_samples(run)}
{section_of("Experts", _experts(run))}
{section_of("Machine", _machine(run))}
<h2>Starts and versions</h2>{_starts(run)}
{_job(run)}""")

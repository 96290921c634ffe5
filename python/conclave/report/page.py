"""The page: numbers at a glance, charts, the job, the versions."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

import numpy as np

from conclave.printable import printable
from conclave.report import charts, load_charts
from conclave.report.run import Run

CSS = """
:root { color-scheme: light; }
body { margin: 0; background: #f4f6f8; color: #1f2933; font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1360px; margin: 0 auto; padding: 28px 28px 60px; }
h1 { margin: 0; font-size: 26px; letter-spacing: -0.01em; }
h2 { margin: 36px 0 12px; font-size: 19px; }
.subtitle { margin: 4px 0 20px; color: #5f6b78; }
.flaws { margin: 0 0 20px; padding: 10px 16px; border-left: 4px solid #d9702b; background: #fdf3ec; border-radius: 4px; }
.flaws ul { margin: 0; padding-left: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(168px, 1fr)); gap: 12px; }
.tile { background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; padding: 12px 16px; }
.tile .name { color: #5f6b78; font-size: 13px; }
.tile .value { font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile .note { color: #5f6b78; font-size: 12.5px; }
.charts { columns: 2 520px; column-gap: 16px; }
figure { margin: 0 0 16px; break-inside: avoid; background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; padding: 14px 16px 10px; }
figure h3 { margin: 0 0 2px; font-size: 15px; }
figcaption { margin: 0 0 8px; color: #5f6b78; font-size: 13px; }
figure svg { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 16px; text-align: left; border-bottom: 1px solid #eef1f4; }
th { color: #5f6b78; font-weight: 500; font-size: 13px; }
.job { columns: 4 300px; column-gap: 14px; }
.job section { break-inside: avoid; background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; padding: 10px 14px; margin: 0 0 14px; font-size: 13px; }
.job h3 { margin: 0 0 4px; font-size: 14px; }
.job div { display: flex; justify-content: space-between; gap: 16px; }
.job span:first-child { color: #5f6b78; }
.job span:last-child { text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
"""


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


def _figure(title: str, caption: str, svg: str | None) -> str:
    if svg is None:
        return ""
    label = html.escape(title, quote=True)
    return (f'<figure><h3>{html.escape(title)}</h3><figcaption>{html.escape(caption)}</figcaption>'
            f'{svg.replace("<svg ", f"<svg role={chr(34)}img{chr(34)} aria-label={chr(34)}{label}{chr(34)} ", 1)}</figure>')


def _training(run: Run) -> list[str]:
    smooth = "; the band holds all steps" if len(run.steps) > charts.MOST_POINTS else ""
    return [
        _figure("Loss", f"Cross-entropy of the next token{smooth}", charts.loss_chart(run)),
        _figure("Losses by set", "Of each source of the blend, and of each validation set that has a name", charts.set_losses_chart(run)),
        _figure("Gradient norm", "Of all parameters", charts.gradient_norm_chart(run)),
        _figure("Learning rate", "", charts.curve_chart(run, "learning-rate", [("lr", None)], "", zero=True)),
        _figure("Tokens per second", "All ranks together", charts.curve_chart(run, "tokens-per-second", [("tokens_per_second", None)], "", zero=True,
                                                                              engineering=True)),
    ]


def _experts(run: Run) -> list[str]:
    latest = load_charts.share_heat_map(run)
    return [
        _figure("Imbalance", f"Tokens of the busiest expert over the mean; 1 is even, the dashed line {load_charts.EVEN}", load_charts.imbalance_chart(run)),
        _figure("Load of each expert", f"Step {latest[1]:,}; white is fair, red too much, blue too little", latest[0]) if latest else "",
        _figure("Imbalance by layer", "The same over the steps; dark is even", load_charts.imbalance_map(run)),
        _figure("Load over time", "White is fair, red too much, blue too little", load_charts.share_snapshots(run)),
        _figure("Router", "Entropy 1: all experts have the same load. Confidence 1: the router is sure of one expert", load_charts.router_chart(run)),
        _figure("Dead experts", "Below 1 % of the mean load for 100 steps", load_charts.dead_experts_chart(run)),
        _figure("Balancing losses", "Without their coefficients", load_charts.losses_chart(run)),
    ]


def _machine(run: Run) -> list[str]:
    return [
        _figure("Memory", "Tensors at a step's peak by category, and what a process held at most so far", charts.memory_chart(run)),
        _figure("Waiting", "What the slowest rank waited for", charts.waiting_chart(run)),
    ]


def _section(title: str, figures: list[str]) -> str:
    shown = [figure for figure in figures if figure]
    return f'<h2>{title}</h2><div class="charts">{"".join(shown)}</div>' if shown else ""


def _starts(run: Run) -> str:
    if not run.starts:
        return "<p>Not recorded by the version that ran.</p>"
    names = ("went on after step", "ranks", "device", "computed in", "Conclave", "PyTorch")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(str(value if value is not None else ''))}</td>" for value in start.values()) + "</tr>"
                   for start in run.starts)
    return f"<table><tr>{head}</tr>{rows}</table>"


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


def _state(run: Run) -> str:
    steps, last = run.key("run", "steps"), int(run.steps[-1])
    if type(steps) is not int:
        return f"{last:,} steps done"
    return f"all {steps:,} steps done" if last >= steps else f"step {last:,} of {steps:,}: still running, or stopped"


def page_of(run: Run) -> str:
    """The whole page as one text, with nothing to be fetched from anywhere."""
    name = printable(run.key("run", "name") or run.folder.name)
    flaws = f'<div class="flaws"><ul>{"".join(f"<li>{html.escape(flaw)}</li>" for flaw in run.flaws)}</ul></div>' if run.flaws else ""
    tiles = "".join(f'<div class="tile"><div class="name">{html.escape(tile.name)}</div><div class="value">{html.escape(tile.value)}</div>'
                    f'<div class="note">{html.escape(tile.note)}</div></div>' for tile in _tiles(run))
    resumed = sum(1 for start in run.starts if start["started_after"])
    resumes = f"; resumed {resumed} time{'s' if resumed > 1 else ''} (dotted lines)" if resumed else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(name)}: report</title><style>{CSS}</style></head>
<body><main>
<h1>{html.escape(name)}</h1>
<p class="subtitle">{html.escape(printable(run.folder))} &middot; {_state(run)}{resumes}</p>
{flaws}<div class="tiles">{tiles}</div>
{_section("Training", _training(run))}
{_section("Experts", _experts(run))}
{_section("Machine", _machine(run))}
<h2>Starts and versions</h2>{_starts(run)}
{_job(run)}
</main></body></html>
"""

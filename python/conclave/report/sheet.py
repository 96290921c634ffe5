"""What all pages share: the style, figures, tables, and the frame around them. Nothing of a page is fetched from anywhere."""

from __future__ import annotations

import html
from collections.abc import Iterable

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
pre { margin: 6px 0; padding: 8px 12px; background: #f4f6f8; border-radius: 4px; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
table { border-collapse: collapse; background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 16px; text-align: left; border-bottom: 1px solid #eef1f4; }
th { color: #5f6b78; font-weight: 500; font-size: 13px; }
.wide { overflow-x: auto; }
.swatch { display: inline-block; width: 11px; height: 11px; margin-right: 8px; border-radius: 3px; }
.job { columns: 4 300px; column-gap: 14px; }
.job section { break-inside: avoid; background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; padding: 10px 14px; margin: 0 0 14px; font-size: 13px; }
.job h3 { margin: 0 0 4px; font-size: 14px; }
.job div { display: flex; justify-content: space-between; gap: 16px; }
.job span:first-child { color: #5f6b78; }
.job span:last-child { text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
@media (max-width: 700px) {
  main { padding: 16px 12px 40px; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .tile .value { font-size: 18px; }
  .charts, .job { columns: 1; }
  figure { overflow-x: auto; padding: 12px 10px 8px; }
  figure svg { min-width: 520px; }
  th, td { padding: 6px 10px; }
}
"""


def figure_of(title: str, caption: str, svg: str | None) -> str:
    """A chart with its title; empty without a chart."""
    if svg is None:
        return ""
    label = html.escape(title, quote=True)
    return (f'<figure><h3>{html.escape(title)}</h3><figcaption>{html.escape(caption)}</figcaption>'
            f'{svg.replace("<svg ", f"<svg role={chr(34)}img{chr(34)} aria-label={chr(34)}{label}{chr(34)} ", 1)}</figure>')


def section_of(title: str, figures: list[str]) -> str:
    """Figures under a heading; empty if there are none."""
    shown = [figure for figure in figures if figure]
    return f'<h2>{title}</h2><div class="charts">{"".join(shown)}</div>' if shown else ""


def table_of(head: Iterable[object], rows: Iterable[Iterable[str]]) -> str:
    """Texts of the head are escaped here; cells are HTML already. A table that is wider than the screen is moved by itself."""
    names = "".join(f"<th>{html.escape(str(name))}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{names}</tr>{lines}</table></div>'


def flaws_of(flaws: list[str]) -> str:
    """What was left out, in words."""
    return f'<div class="flaws"><ul>{"".join(f"<li>{html.escape(flaw)}</li>" for flaw in flaws)}</ul></div>' if flaws else ""


def whole_page(title: str, subtitle: str, body: str) -> str:
    """`title` is a text, `subtitle` and `body` are HTML."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}: report</title><style>{CSS}</style></head>
<body><main>
<h1>{html.escape(title)}</h1>
<p class="subtitle">{subtitle}</p>
{body}
</main></body></html>
"""

"""Draws charts of a run's report side by side: docs/images/report.svg.

    ./dev bench report_picture runs/quickstart/training
"""

import argparse
import re
import sys
from pathlib import Path

from sides import ROOT, BenchmarkError, exit_code_of

PICTURE = ROOT / "docs/images/report.svg"
GAP = 18
TITLE = 22


def at(svg: str, title: str, left: float, top: float, width: float) -> tuple[str, float]:
    """The chart under its title at a place and a width of a larger picture, and where it ends."""
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\d+\.\d)\d+", r"\1", path[0]), svg)  # a tenth of a point is enough for curves
    own_width, own_height = (float(number) for number in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    height = own_height * width / own_width
    placed = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'x="{left}" y="{top + TITLE}" width="{width}" height="{height:.1f}"', svg, count=1)
    head = f'<text x="{left + 8}" y="{top + 15}" font-family="Helvetica, Arial, sans-serif" font-size="13" font-weight="600" fill="#1f2933">{title}</text>'
    return head + placed, top + TITLE + height


def draw(options: argparse.Namespace) -> None:
    sys.path.insert(0, str(ROOT / "python"))
    from conclave.report import charts, load_charts
    from conclave.report.errors import ReportError
    from conclave.report.run import read_run

    try:
        run = read_run(options.run)
    except ReportError as error:
        raise BenchmarkError(str(error)) from None
    heat_map = load_charts.share_heat_map(run)
    columns = [[("Loss", charts.loss_chart(run)), ("Memory", charts.memory_chart(run))],
               [("Load of each expert", heat_map and heat_map[0]), ("Imbalance", load_charts.imbalance_chart(run))]]
    width, parts, bottom = 420, [], 0.0
    for column, pictures in enumerate(columns):
        top = GAP
        for title, svg in pictures:
            if svg is None:
                raise BenchmarkError(f"{options.run} has nothing to draw for {title}")
            part, end = at(svg, title, GAP + column * (width + GAP), top, width)
            parts.append(part)
            top = end + GAP
        bottom = max(bottom, top)
    whole = 2 * width + 3 * GAP
    PICTURE.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {whole} {bottom:.0f}" width="{whole}">'
                       f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n')
    print(f"drawn: {PICTURE.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run")
    sys.exit(exit_code_of(draw, parser.parse_args()))

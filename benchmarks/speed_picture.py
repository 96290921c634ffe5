"""Draws the recorded results of train_step: docs/images/train_step.svg, and prints them as the tables of docs/speed.md, one for each processor.

    ./dev bench speed_picture
"""

import argparse
import json
import sys

from sides import RESULTS, ROOT, BenchmarkError, exit_code_of

PICTURE = ROOT / "docs/images/train_step.svg"


def recorded() -> list[dict]:
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("train_step-*.json"))]
    if not results:
        raise BenchmarkError(f"{RESULTS.relative_to(ROOT)} has no result of train_step. Make one: ./dev bench train_step")
    return sorted(results, key=lambda result: (result["options"]["precision"] != "fp32", result["options"]["shape"], result["options"]["batch"], result["name"]))


def by_processor(results: list[dict]) -> dict[str, list[dict]]:
    processors = sorted({result["machine"]["processor"] for result in results}, reverse=True)
    return {processor: [result for result in results if result["machine"]["processor"] == processor] for processor in processors}


def label_of(result: dict) -> str:
    options = result["options"]
    place = f", {options['rate']} between ranks" if options.get("rate") else ""
    rival = ", rival as installed" if result["name"].endswith("as-installed") else ""
    return f"{options['shape']} {options['batch']} x {options['sequence']}, {options['precision']}{place}{rival}"


def draw(groups: dict[str, list[dict]]) -> None:
    sys.path.insert(0, str(ROOT / "python"))
    from conclave.report.charts import svg_of
    from matplotlib.figure import Figure

    lengths = [len(results) for results in groups.values()]
    figure = Figure(figsize=(7.6, 0.62 * sum(lengths) + 0.9 * len(lengths)), layout="constrained")
    for axes, (processor, results) in zip(figure.subplots(len(groups), squeeze=False, height_ratios=lengths)[:, 0], groups.items(), strict=True):
        draw_group(axes, results)
        axes.set_title(processor, loc="left", fontsize=9)
    PICTURE.write_text(svg_of(figure, "train-step", transparent=False))


def draw_group(axes, results: list[dict]) -> None:
    from conclave.report.charts import BLUE, GREY

    for place, result in enumerate(reversed(results)):
        for offset, side, color in ((0.2, "conclave", BLUE), (-0.2, "rival", GREY)):
            seconds = result["summary"][side]["step_seconds"]
            spread = [[seconds["median"] - seconds["lowest"]], [seconds["highest"] - seconds["median"]]]
            axes.barh(place + offset, seconds["median"], height=0.36, color=color, xerr=spread, error_kw={"linewidth": 0.8, "ecolor": "#4a5563"},
                      label={"conclave": "Conclave", "rival": "Transformers + FSDP2"}[side] if place == 0 else None)
        text = f" {result['summary']['speed_ratio']:.2f} x"
        axes.text(result["summary"]["conclave"]["step_seconds"]["highest"], place + 0.2, text, va="center", fontsize=8.5)
    axes.set_yticks(range(len(results)), [label_of(result) for result in reversed(results)])
    axes.set_xlabel("seconds a step")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower right")


def print_table(results: list[dict]) -> None:
    print("| shape, tokens a rank, precision | Conclave s/step | rival s/step | times the speed | by round | times the memory |\n|---|---|---|---|---|---|")
    for result in results:
        summary = result["summary"]
        rounds = summary["speed_ratio_by_round"]
        own, rival = (summary[side]["step_seconds"] for side in ("conclave", "rival"))
        print(f"| {label_of(result)} | {own['median']:.2f} ({own['lowest']:.2f} to {own['highest']:.2f}) | "
              f"{rival['median']:.2f} ({rival['lowest']:.2f} to {rival['highest']:.2f}) | **{summary['speed_ratio']:.2f}** | "
              f"{rounds['lowest']:.2f} to {rounds['highest']:.2f} | {summary['memory_ratio']:.2f} |")


def measure(options: argparse.Namespace) -> None:
    groups = by_processor(recorded())
    draw(groups)
    for processor, results in groups.items():
        print(f"\n{processor}\n")
        print_table(results)
    print(f"drawn: {PICTURE.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sys.exit(exit_code_of(measure, parser.parse_args()))

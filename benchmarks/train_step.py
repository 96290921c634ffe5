"""Steps of training, Conclave against Transformers' model of the same family under PyTorch's fully_shard: same model, parameters, batches and optimizer on
the same ranks.

    ./dev bench train_step --shape small --batch 1 --sequence 512 --steps 40 --rounds 3
    ./dev bench train_step --shape olmoe --sequence 1024 --precision bf16

Runs alternate (Conclave, rival, Conclave, rival, ...), so that a machine that gets slower meanwhile does so for both. The losses of every step are
compared: a step that computes something else is not compared in time. See benchmarks/README.md for what the numbers mean.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
from importlib.metadata import version
from pathlib import Path

from sides import (OPTIMIZER, RESULTS, SHAPES, BenchmarkError, Setting, confine_to_cores, exit_code_of, experts_of, find_program, find_tcmalloc,
                   footprint_setting, processor_name, run_conclave, run_rival, summary_of)

# Largest relative differences of the losses that rounding explains. In the first step the parameters are equal, so only the order of sums differs (fp32:
# 1e-7 seen) and a wrong batch or parameter shows as 1e-3 or more. Then a difference in the last place moves a token to another expert now and then, and
# the steps amplify that; a wrong rate or gradient shows there.
FIRST_STEP_TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}
TOLERANCE = {"fp32": 1e-3, "bf16": 1e-2}


def largest_difference(left: list[list[dict]], right: list[list[dict]], key: str) -> float:
    """Over all rounds and steps, relative to the right one."""
    return max(abs(a[key] - b[key]) / abs(b[key]) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


def summarize(runs: dict[str, list[list[dict]]], footprint: dict[str, int], tokens: int, left_out: int) -> dict:
    """`runs`: by side, the lines of each round. `tokens`: of all ranks in a step. The first `left_out` steps of each run are not timed."""
    sides = {}
    for side, rounds in runs.items():
        seconds = [[line["step_seconds"] for line in lines[left_out:]] for lines in rounds]
        peak = max(lines[-1]["peak_resident_bytes"] for lines in rounds)
        sides[side] = {
            "step_seconds": summary_of([value for values in seconds for value in values]),
            "step_seconds_median_by_round": [statistics.median(values) for values in seconds],
            "tokens_per_second": tokens / statistics.median([value for values in seconds for value in values]),
            "peak_resident_bytes": peak,
            "footprint_bytes": footprint[side],
            "peak_above_footprint_bytes": peak - footprint[side],
        }
        if "peak_memory_bytes" in rounds[0][-1]:
            sides[side]["peak_memory_bytes"] = max(lines[-1]["peak_memory_bytes"] for lines in rounds)
    medians = {side: values["step_seconds_median_by_round"] for side, values in sides.items()}
    conclave, rival = runs["conclave"], runs["rival"]
    return {
        **sides,
        "speed_ratio_by_round": summary_of([b / a for a, b in zip(medians["conclave"], medians["rival"], strict=True)]),
        "speed_ratio": sides["rival"]["step_seconds"]["median"] / sides["conclave"]["step_seconds"]["median"],
        "memory_ratio": sides["conclave"]["peak_above_footprint_bytes"] / sides["rival"]["peak_above_footprint_bytes"],
        "largest_relative_difference": {key: largest_difference(conclave, rival, key) for key in ("loss", "lm_loss", "aux_loss", "grad_norm")},
        "largest_relative_difference_between_rounds": {
            side: largest_difference(rounds[1:], [rounds[0]] * (len(rounds) - 1), "loss") if len(rounds) > 1 else None for side, rounds in runs.items()},
    }


def check_losses(runs: dict[str, list[list[dict]]], precision: str) -> None:
    first = {side: [lines[:1] for lines in rounds] for side, rounds in runs.items()}
    for steps, compared, tolerance in ((" in the first step", first, FIRST_STEP_TOLERANCE[precision]), ("", runs, TOLERANCE[precision])):
        difference = largest_difference(compared["conclave"], compared["rival"], "loss")
        if not difference <= tolerance:  # also when it is not a number
            raise BenchmarkError(f"the losses{steps} differ by {difference:.1e}, more than {tolerance:.0e}: the two do not compute the same, so their "
                                 "times cannot be compared")


def print_table(title: str, summary: dict, left_out: int, rounds: int, steps: int) -> None:
    mebibyte = 2.0**20
    print(f"\n{title}\n{rounds} rounds of {steps} steps, the first {left_out} of each not timed; median (lowest to highest)")
    print(f"{'':10} {'s/step':>26} {'tokens/s':>10} {'peak MiB a rank':>16} {'above libraries':>16}")
    for side in ("conclave", "rival"):
        values = summary[side]
        seconds = values["step_seconds"]
        spread = f"{seconds['median']:.3f} ({seconds['lowest']:.3f} to {seconds['highest']:.3f})"
        print(f"{side:10} {spread:>26} {values['tokens_per_second']:10.0f} {values['peak_resident_bytes'] / mebibyte:16.0f} "
              f"{values['peak_above_footprint_bytes'] / mebibyte:16.0f}")
    ratio = summary["speed_ratio_by_round"]
    print(f"Conclave is {summary['speed_ratio']:.2f} x as fast (by round {ratio['lowest']:.2f} to {ratio['highest']:.2f}) "
          f"with {summary['memory_ratio']:.2f} x the memory above the libraries")
    difference = summary["largest_relative_difference"]
    print("largest relative difference over all steps: " + ", ".join(f"{key} {value:.1e}" for key, value in difference.items()))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench train_step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--experts", type=int, help="experts of a layer (default: the shape's, else 8)")
    parser.add_argument("--choices", type=int, help="experts that each token is sent to (default: the shape's, else 2)")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a rank in a step (default 1)")
    parser.add_argument("--sequence", type=int, default=512, help="tokens of a sequence (default 512)")
    parser.add_argument("--steps", type=int, default=40, help="steps of a run (default 40)")
    parser.add_argument("--untimed", type=int, help="the first steps of a run, not timed (default: half of them, at most 20)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--world", type=int, default=2, help="ranks, of one thread each (default 2)")
    parser.add_argument("--rate", help="2 ranks on two hosts, emulated by network namespaces, whose link is held to this rate by tc, for example 1gbit; needs root")
    parser.add_argument("--rival-experts", choices=["grouped_mm", "eager"], default="grouped_mm", help="Transformers' experts_implementation")
    parser.add_argument("--tcmalloc", default="auto", metavar="PATH", help="what the rival preloads: a path, auto (the system's, if any) or none")
    parser.add_argument("--output", type=Path, help="the result (default: benchmarks/results/train_step-....json)")
    options = parser.parse_args()
    options.lr = OPTIMIZER["lr"]
    options.experts, options.choices = experts_of(SHAPES[options.shape], options.experts, options.choices)
    if options.rate and options.world != 2:
        parser.error(f"--rate is for 2 ranks, one on each of two hosts, and --world is {options.world}")
    if options.untimed is None:
        options.untimed = min(options.steps // 2, 20)
    if min(options.steps - options.untimed, options.rounds, options.world, options.batch, options.sequence) < 1:
        parser.error("steps after the untimed ones, rounds, world, batch and sequence must be at least 1")
    return options


def measure(options: argparse.Namespace) -> int:
    program = find_program()
    tcmalloc = find_tcmalloc(options.tcmalloc)
    confine_to_cores(options.world)

    sides = {"conclave": lambda *size: run_conclave(program, *size), "rival": lambda *size: run_rival(tcmalloc, *size)}
    least = footprint_setting(options)
    footprint = {side: start(least, options, 1, 128, 2)[-1]["peak_resident_bytes"] for side, start in sides.items()}
    setting = Setting(options.shape, SHAPES[options.shape], options)
    loads, runs = [], {side: [] for side in sides}
    for number in range(options.rounds):
        for side, start in sides.items():
            loads.append(os.getloadavg()[0])
            runs[side].append(start(setting, options, options.batch, options.sequence, options.steps))
            median = statistics.median(line["step_seconds"] for line in runs[side][-1][options.untimed :])
            print(f"round {number + 1}, {side}: {median:.3f} s/step, loss {runs[side][-1][-1]['loss']:.4f}", flush=True)

    summary = summarize(runs, footprint, options.world * options.batch * options.sequence, options.untimed)
    name = f"{options.shape}-{options.batch}x{options.sequence}-{options.precision}-world{options.world}{f'-{options.rate}' if options.rate else ''}{'' if tcmalloc else '-as-installed'}"
    result = {
        "benchmark": "train_step",
        "name": name,
        "date": datetime.date.today().isoformat(),
        "options": {key: value for key, value in vars(options).items() if key not in ("output", "tcmalloc")},
        "rival": {"torch": version("torch"), "transformers": version("transformers"), "experts": options.rival_experts,
                  "allocator": f"{tcmalloc.name} preloaded" if tcmalloc else "of the C library"},
        "machine": {"processor": processor_name(), "cores": os.cpu_count(), "load_before_each_run": loads},
        "summary": summary,
        "steps": {side: [[{key: line[key] for key in ("step", "loss", "lm_loss", "aux_loss", "grad_norm", "step_seconds")} for line in lines]
                         for lines in rounds] for side, rounds in runs.items()},
    }
    output = options.output or RESULTS / f"train_step-{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print_table(f"{name}; rival: experts {options.rival_experts}, allocator {result['rival']['allocator']}", summary, options.untimed, options.rounds,
                options.steps)
    print(f"result: {os.path.relpath(output)}")
    if loads[0] > 0.7:
        print(f"note: the load was {loads[0]:.1f} before the first run; other programs were running, so the times mean little")
    if not tcmalloc and options.tcmalloc == "auto":
        print("note: no tcmalloc was found, so the rival is not at its best: apt-get install libtcmalloc-minimal4")
    check_losses(runs, options.precision)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(measure, parse_options()))

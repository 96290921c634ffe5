"""Steps of training from Python: Transformers' model under FSDP2, the same with conclave.transform, and the program, on the same ranks.

    ./dev bench python_step --shape small --steps 12 --rounds 2

The transformed model is accelerated, too (conclave.accelerate and conclave.AdamW), unless --no-accelerate leaves that out. Same model, parameters,
batches and optimizer on all three sides, in turn, so that a machine that gets slower meanwhile does so for all. The losses of every
step are compared. `speed_ratio` is how many times the tokens a second of plain Transformers the transformed model trains; `cost_of_python` how many
times as long as the program's its steps take.
"""

import argparse
import datetime
import json
import math
import statistics
from importlib.metadata import version
from pathlib import Path

from sides import (OPTIMIZER, RESULTS, SHAPES, BenchmarkError, Setting, confine_to_cores, exit_code_of, experts_of, find_program, find_tcmalloc,
                   processor_name, run_conclave, run_rival, summary_of)
from train_step import check_losses, largest_difference

SIDES = ("program", "transformed", "plain")


def measure(options: argparse.Namespace) -> int:
    confine_to_cores(options.world)
    setting, program, tcmalloc = Setting(options.shape, SHAPES[options.shape], options), find_program(), find_tcmalloc(options.tcmalloc)
    degree = math.gcd(options.world, options.experts)
    runs: dict[str, list[list[dict]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        runs["program"].append(run_conclave(program, setting, options, options.batch, options.sequence, options.steps))
        for side, expert_degree in (("transformed", degree), ("plain", 0)):
            runs[side].append(run_rival(tcmalloc, setting, options, options.batch, options.sequence, options.steps, expert_degree=expert_degree,
                                        accelerate=options.accelerate and expert_degree > 0))
    for side in ("program", "transformed"):
        try:
            check_losses({"conclave": runs[side], "rival": runs["plain"]}, options.precision)
        except BenchmarkError as error:
            raise BenchmarkError(f"{side} and plain: {error}") from None

    left_out = min(20, options.steps // 2)
    seconds = {side: [statistics.median(line["step_seconds"] for line in lines[left_out:]) for lines in runs[side]] for side in SIDES}
    tokens = options.batch * options.sequence * options.world
    result = {
        "what": vars(options) | {"output": None, "expert_degree": degree, "tcmalloc": str(tcmalloc) if tcmalloc else None},
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor_name(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "step_seconds": {side: summary_of(values) for side, values in seconds.items()},
        "tokens_per_second": {side: tokens / statistics.median(values) for side, values in seconds.items()},
        "speed_ratio": summary_of([plain / own for own, plain in zip(seconds["transformed"], seconds["plain"], strict=True)]),
        "cost_of_python": summary_of([own / program for own, program in zip(seconds["transformed"], seconds["program"], strict=True)]),
        "largest_relative_difference_of_loss": {side: largest_difference(runs[side], runs["plain"], "loss") for side in ("program", "transformed")},
    }
    output = options.output or RESULTS / f"python_step-{options.shape}-{options.precision}{'' if options.accelerate else '-plain'}.json"
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("step_seconds", "tokens_per_second", "speed_ratio", "cost_of_python")}, indent=2))
    print(f"written to {output}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--experts", type=int, help="experts of a layer (default: the shape's, else 8)")
    parser.add_argument("--choices", type=int, help="experts that each token is sent to (default: the shape's, else 2)")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a rank in a step (default 1)")
    parser.add_argument("--sequence", type=int, default=512, help="tokens of a sequence (default 512)")
    parser.add_argument("--steps", type=int, default=12, help="steps of a run; the first half, at most 20, is not timed (default 12)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side (default 2)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--accelerate", action=argparse.BooleanOptionalAction, default=True, help="the transformed side with conclave.accelerate (default)")
    parser.add_argument("--world", type=int, default=2, help="ranks, of one thread each (default 2)")
    parser.add_argument("--rival-experts", choices=["grouped_mm", "eager"], default="grouped_mm", help="Transformers' own experts_implementation")
    parser.add_argument("--tcmalloc", default="auto", metavar="PATH", help="what the Python sides preload: a path, auto (the system's, if any) or none")
    parser.add_argument("--output", type=Path, help="the result (default: benchmarks/results/python_step-....json)")
    options = parser.parse_args()
    options.experts, options.choices = experts_of(SHAPES[options.shape], options.experts, options.choices)
    options.lr, options.rate = OPTIMIZER["lr"], None
    return exit_code_of(measure, options)


if __name__ == "__main__":
    raise SystemExit(main())

"""Has training become slower than it was? Repeats the recorded train_step benchmarks of this class of machine and holds the ratios against theirs.

    ./dev bench --check
    ./dev bench --check --only small-1x512-fp32 --rounds 2

A record is a result of `./dev bench train_step` in benchmarks/results. Compared is Conclave's speed as a multiple of the rival's in the same round, never
seconds, and only on the processor it was recorded on, with as many cores. The tolerance is what the record's own rounds and the repeated ones are apart,
and never less than --least-tolerance. Exit code 1 when a ratio is below its record by more than that.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import train_step
from sides import RESULTS, BenchmarkError, exit_code_of, processor_name


def records(folder: Path, only: str) -> list[dict]:
    """Of this class of machine."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("train_step-*.json"))]
    machine = (processor_name(), os.cpu_count())
    chosen = [record for record in found if (record["machine"]["processor"], record["machine"]["cores"]) == machine and only in record["name"]]
    if not chosen:
        raise BenchmarkError(f"none of the {len(found)} records in {os.path.relpath(folder)} is of a {machine[0]} with {machine[1]} cores"
                             f"{f' and has {only!r} in its name' if only else ''}. Make one: ./dev bench train_step")
    return chosen


def half_spread(ratios: dict) -> float:
    """Of ratios by round, relative to their median."""
    return (ratios["highest"] - ratios["lowest"]) / (2 * ratios["median"])


def verdict_of(recorded: dict, seen: dict, least_tolerance: float) -> dict:
    """`recorded`, `seen`: summaries of speed_ratio_by_round."""
    tolerance = max(least_tolerance, half_spread(recorded) + half_spread(seen))
    change = seen["median"] / recorded["median"] - 1
    return {"recorded": recorded["median"], "seen": seen["median"], "change": change, "tolerance": tolerance, "slower": change < -tolerance}


def repeat(record: dict, rounds: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        tcmalloc = "auto" if "preloaded" in record["rival"]["allocator"] else "none"
        options = argparse.Namespace(**{"rate": None, **record["options"], "rounds": rounds}, tcmalloc=tcmalloc, output=output)
        if code := train_step.measure(options):
            raise BenchmarkError(f"{record['name']} ended with exit code {code}")
        return json.loads(output.read_text())


def check(options: argparse.Namespace) -> int:
    slower = 0
    for record in records(options.records, options.only):
        result = repeat(record, options.rounds)
        verdict = verdict_of(record["summary"]["speed_ratio_by_round"], result["summary"]["speed_ratio_by_round"], options.least_tolerance)
        word = "SLOWER" if verdict["slower"] else "as recorded" if verdict["change"] < verdict["tolerance"] else "faster"
        print(f"{record['name']}: {word}: {verdict['seen']:.2f} x the rival's speed, recorded {verdict['recorded']:.2f} x on {record['date']} "
              f"({100 * verdict['change']:+.1f} %, tolerance {100 * verdict['tolerance']:.1f} %)\n", flush=True)
        slower += verdict["slower"]
    return 1 if slower else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench --check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="records whose name contains TEXT")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side for each record (default 2)")
    parser.add_argument("--least-tolerance", type=float, default=0.05, help="relative (default 0.05)")
    parser.add_argument("--records", type=Path, default=RESULTS, help="the folder of the records (default: benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(exit_code_of(check, parse_options()))

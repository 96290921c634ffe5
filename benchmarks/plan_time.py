"""What `conclave plan` says a step takes, held against measured steps, on a device description that `conclave bench machine` measured just before.

    ./dev bench plan_time
    ./dev bench plan_time --shape small --sequence 512 --places 1 2 1gbit --rounds 3

Places: a number of ranks on this machine, of one thread each, or a rate as tc has it: then two ranks on two hosts, emulated by network namespaces (needs
root, `ip` and `tc`; left out where they are missing). Each round measures the machine, then a run that records its routing, whose replay is the plan, and
`conclave bench step`, one after the other, so that all meet the same load. Errors are of the rounds' medians.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

from hosts import start_two_ranks, two_hosts
from sides import RESULTS, SHAPES, BenchmarkError, Setting, exit_code_of, find_program, processor_name, read_lines, summary_of

PARTS = {"products": ("products",), "attention": ("attention",), "memory_passes": ("computing", "permute", "kernels"), "optimizer": ("optimizer",),
         "dispatch": ("dispatch",), "gather_wait": ("gather",), "reduce_wait": ("reduce",)}


def run_on(place: str, words: list) -> str:
    """What rank 0 of the command prints there. A rank has one thread."""
    if place.isdigit() and int(place) != 2:
        command = [str(word) for word in [*words, "--ranks", place]]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        ended, codes = [(done.stdout, done.stderr)], [done.returncode]
    else:
        ranks = start_two_ranks(words, not place.isdigit(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        ended = [rank.communicate() for rank in ranks]
        codes = [rank.returncode for rank in ranks]
    if any(codes):
        raise BenchmarkError(f"`{' '.join(map(str, words))}` ended with {codes}:\n{ended[0][1][-3000:]}")
    return ended[0][0]


def last_object(printed: str) -> dict:
    return json.loads(next(line for line in printed.splitlines() if line.startswith("{")))


def measure_round(place: str, setting: Setting, options: argparse.Namespace) -> dict:
    program, ranks = find_program(), int(place) if place.isdigit() else 2
    output, device = setting.folder / "plan_time", setting.folder / "plan_time_device.yaml"
    shutil.rmtree(output, ignore_errors=True)
    job = {"run": {"name": "bench", "output_dir": str(output), "device": "cpu", "steps": options.steps},
           "model": {"config": str(setting.config)},
           "data": {"train": str(setting.data), "sequence_length": options.sequence, "micro_batch_size": options.batch},
           "parallel": {"expert_parallel_degree": ranks}, "precision": {"compute": options.precision},
           "checkpoint": {"every_minutes": 0}, "metrics": {"tensorboard": False, "record_routing": True}}
    job_file = setting.folder / "plan_time.json"
    job_file.write_text(json.dumps(job))
    run_on(place, [program, "bench", "machine", "--steps", options.steps, "--output", device])
    run_on(place, [program, "train", job_file])
    profile = last_object(run_on(place, [program, "bench", "step", job_file, "--profile", "--steps", options.steps, "--untimed", 3, "--json"]))
    planned = json.loads(subprocess.run([program, "plan", job_file, "--world", str(ranks), "--device", device, "--routing", output, "--json"],
                                        check=True, capture_output=True, text=True).stdout)
    trained = statistics.median(line["step_seconds"] for line in read_lines(output / "metrics.jsonl")[3:])
    return {"measured": profile["step_seconds"], "trained": trained, "planned": planned["routing"]["step_seconds"]["median"],
            "planned_even": planned["time"]["step_seconds"], "device": device.read_text(),
            "parts": {part: {"planned": planned["time"][part], "measured": sum(profile["total"][phase] for phase in phases)} for part, phases in PARTS.items()}}


def measure(options: argparse.Namespace) -> None:
    options.experts, options.choices = 8, 2
    setting = Setting(options.shape, SHAPES[options.shape], options)
    results = []
    for place in options.places:
        emulated = not place.isdigit()
        if emulated and (os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc")):
            print(f"{place}: left out, for two hosts need root, `ip` and `tc`")
            continue
        with two_hosts(place) if emulated else nullcontext():
            rounds = [measure_round(place, setting, options) for _ in range(options.rounds)]
        seconds = {key: summary_of([one[key] for one in rounds]) for key in ("measured", "trained", "planned", "planned_even")}
        error = seconds["planned"]["median"] / seconds["measured"]["median"] - 1
        name = f"2 hosts at {place}" if emulated else f"{place} rank{'s' if place != '1' else ''}"
        results.append({"place": name, **seconds, "error": error, "rounds": rounds})
        print(f"{name:<18} planned {seconds['planned']['median']:.3f} s, bench step {seconds['measured']['median']:.3f} s "
              f"({seconds['measured']['lowest']:.3f} to {seconds['measured']['highest']:.3f}), training {seconds['trained']['median']:.3f} s: {100 * error:+.1f} %")
        for part in PARTS:
            of = {side: statistics.median(one["parts"][part][side] for one in rounds) for side in ("planned", "measured")}
            print(f"    {part:<16} planned {of['planned']:.4f} s, measured {of['measured']:.4f} s", flush=True)
    file = Path(options.output) if options.output else RESULTS / f"plan_time-{options.shape}-{options.batch}x{options.sequence}-{options.precision}.json"
    file.write_text(json.dumps({"machine": processor_name(), "load": os.getloadavg()[0], "results": results}, indent=1) + "\n")
    print(f"written: {file}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench plan_time", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a rank in a step (default 1)")
    parser.add_argument("--sequence", type=int, default=512, help="tokens of a sequence (default 512)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--places", nargs="+", default=["1", "2", "1gbit"], help="numbers of ranks on this machine, or rates between two hosts (default: 1 2 1gbit)")
    parser.add_argument("--steps", type=int, default=10, help="steps of a run (default 10)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="the result (default: benchmarks/results/plan_time-....json)")
    options = parser.parse_args()
    return exit_code_of(measure, options)


if __name__ == "__main__":
    sys.exit(main())

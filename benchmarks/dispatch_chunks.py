"""Steps of two ranks on two hosts, emulated by network namespaces whose link is held to a rate by tc, and on one host: with rows dispatched in one part
and in several that overlap with the experts' computation (moe.dispatch_chunks).

    ./dev bench dispatch_chunks
    ./dev bench dispatch_chunks --shape small --sequence 512 --rate 1gbit --chunks 1 2 4

Needs root, `ip` and `tc`. Runs alternate between the numbers of parts; the namespaces are removed at the end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import nullcontext

from hosts import start_two_ranks, two_hosts
from sides import RESULTS, ROOT, SHAPES, BenchmarkError, Setting, exit_code_of, find_program, processor_name


def step_seconds(command: list, hosts: bool) -> dict:
    """What `conclave bench step --json` prints, of two ranks on two hosts or on this one."""
    ranks = start_two_ranks(command, hosts, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ended = [rank.communicate() for rank in ranks]
    if any(rank.returncode != 0 for rank in ranks):
        raise BenchmarkError(f"bench step ended with {[rank.returncode for rank in ranks]}:\n{ended[0][1]}\n{ended[1][1]}")
    return json.loads(next(line for line in ended[0][0].splitlines() if line.startswith("{")))


def measure(options: argparse.Namespace) -> None:
    options.experts, options.choices = 8, 2
    setting = Setting(options.shape, SHAPES[options.shape], options)
    job = {"run": {"name": "bench", "output_dir": str(setting.folder / "conclave"), "device": "cpu", "steps": 1000},
           "model": {"config": str(setting.config), "init_from": str(setting.checkpoint)},
           "data": {"train": str(setting.data), "sequence_length": options.sequence},
           "parallel": {"expert_parallel_degree": 2}, "precision": {"compute": options.precision}, "metrics": {"tensorboard": False}}
    job_file = setting.folder / "dispatch_chunks.json"
    job_file.write_text(json.dumps(job))
    results = []
    for hosts in (True, False):
        taken: dict[int, list[dict]] = {chunks: [] for chunks in options.chunks}
        with two_hosts(options.rate) if hosts else nullcontext():
            for _ in range(options.rounds):
                for chunks in options.chunks:
                    command = [find_program(), "bench", "step", job_file, "--steps", options.steps, "--untimed", 2, "--json",
                               "--set", f"moe.dispatch_chunks={chunks}"]
                    taken[chunks].append(step_seconds(command, hosts))
        for chunks, profiles in taken.items():
            results.append({"network": options.rate if hosts else "one host", "chunks": chunks,
                            "step_seconds": [profile["step_seconds"] for profile in profiles],
                            "dispatch_seconds": [profile["total"]["dispatch"] for profile in profiles]})
            print(f"{results[-1]['network']:<10}{chunks} parts: {statistics.median(results[-1]['step_seconds']):.3f} s a step, of which "
                  f"{statistics.median(results[-1]['dispatch_seconds']):.3f} s waiting for rows", flush=True)
    file = RESULTS / f"dispatch_chunks-{options.shape}-1x{options.sequence}-{options.precision}.json"
    file.write_text(json.dumps({"machine": processor_name(), "load": os.getloadavg()[0], "results": results}, indent=1) + "\n")
    print(f"written: {file.relative_to(ROOT)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rate", default="1gbit", help="of the link between the two hosts, as tc has it")
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    return exit_code_of(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())

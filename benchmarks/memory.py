"""Peak memory of training, Conclave against Transformers' Mixtral under PyTorch's fully_shard, at the same work on 2 ranks.

    ./dev bench memory                                    # all configurations; the rival's figures are those recorded below
    ./dev bench memory --only small-1x512 --rival         # the rival is run, too

What is compared is a rank's peak resident memory (VmHWM of the rank with the most) less what the same program takes when it trains next to nothing.
See benchmarks/README.md.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from sides import (RESULTS, SHAPES, BenchmarkError, Setting, confine_to_cores, exit_code_of, find_program, find_tcmalloc, footprint_setting, processor_name,
                   run_conclave, run_rival)

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Configuration:
    shape: str
    batch: int
    sequence: int
    recompute: bool
    rival_mib: int  # measured with the rival of fsdp2_rival.py, fp32, 2 ranks, tcmalloc preloaded
    offload: bool = False  # Conclave's layer inputs leave memory, too; the rival has no such thing, so this does not count in the mean

    @property
    def name(self) -> str:
        return f"{self.shape}-{self.batch}x{self.sequence}" + ("-recompute" if self.recompute else "") + ("-offload" if self.offload else "")

    @property
    def keys(self) -> dict:
        return ({"memory.activation_checkpointing": "full"} if self.recompute else {}) | ({"memory.activation_offloading": "true"} if self.offload else {})


CONFIGURATIONS = [
    Configuration("small", 1, 512, False, 2250),
    Configuration("small", 4, 1024, False, 4530),
    Configuration("small", 4, 1024, True, 2240),
    Configuration("wide", 1, 512, False, 5150),
    Configuration("wide", 4, 1024, False, 6300),
    Configuration("wide", 4, 1024, True, 4850),
    Configuration("small", 4, 1024, True, 2240, offload=True),
    Configuration("wide", 4, 1024, True, 4850, offload=True),
]


def mebibytes(value: float) -> float:
    return round(value / MEBIBYTE, 1)


def conclave_figures(lines: list[dict], footprint: int, untimed: int) -> dict:
    last = lines[-1]
    return {
        "peak_above_footprint_mib": mebibytes(last["peak_resident_bytes"] - footprint),
        "accounted_peak_mib": mebibytes(last["peak_memory_bytes"]),
        "accounted_at_peak_mib": {key.removeprefix("memory/"): mebibytes(value) for key, value in last.items() if key.startswith("memory/")},
        "step_seconds": statistics.median(line["step_seconds"] for line in lines[untimed:]),
    }


def floor_mib(setting: Setting, world: int) -> float:
    """Parameters, gradients and two moments in fp32, divided over the ranks."""
    config = json.loads(setting.config.read_text())
    hidden, layers, experts = config["hidden_size"], config["num_hidden_layers"], config["num_local_experts"]
    query, key = (config[heads] * config["head_dim"] for heads in ("num_attention_heads", "num_key_value_heads"))
    layer = 2 * hidden + hidden * (2 * query + 2 * key) + experts * hidden + experts * 3 * hidden * config["intermediate_size"]
    parameters = 2 * config["vocab_size"] * hidden + hidden + layers * layer
    return mebibytes(16 * parameters / world)


def print_row(name: str, figures: dict) -> None:
    conclave = figures["conclave"]
    print(f"{name:22} {figures['floor_mib']:8.0f} {conclave['accounted_peak_mib']:10.0f} {conclave['peak_above_footprint_mib']:9.0f} "
          f"{figures['rival_mib']:8.0f} {figures['ratio']:7.2f} {conclave['step_seconds']:9.2f}", flush=True)


def measure(options: argparse.Namespace) -> int:
    program, tcmalloc = find_program(), find_tcmalloc(options.tcmalloc)
    confine_to_cores(options.world)
    least = footprint_setting(options)
    footprint = run_conclave(program, least, options, 1, 128, 2)[-1]["peak_resident_bytes"]
    rival_footprint = run_rival(tcmalloc, least, options, 1, 128, 2)[-1]["peak_resident_bytes"] if options.rival else None
    untimed = options.steps // 2

    print(f"MiB a rank; Conclave's libraries ({footprint / MEBIBYTE:.0f}) not counted; the rival's figures are "
          + (f"measured now, less its libraries ({rival_footprint / MEBIBYTE:.0f})" if options.rival else "recorded ones"))
    print(f"{'':22} {'floor':>8} {'accounted':>10} {'resident':>9} {'rival':>8} {'ratio':>7} {'s/step':>9}")
    results = {}
    for configuration in CONFIGURATIONS:
        if options.only and configuration.name not in options.only:
            continue
        setting = Setting(configuration.shape, SHAPES[configuration.shape], options)
        lines = run_conclave(program, setting, options, configuration.batch, configuration.sequence, options.steps, configuration.keys)
        figures = {"floor_mib": floor_mib(setting, options.world), "conclave": conclave_figures(lines, footprint, untimed),
                   "rival_mib": float(configuration.rival_mib), "rival_is": "recorded"}
        if options.rival and not configuration.offload:
            rival = run_rival(tcmalloc, setting, options, configuration.batch, configuration.sequence, options.steps, configuration.recompute)
            figures["rival_mib"], figures["rival_is"] = mebibytes(rival[-1]["peak_resident_bytes"] - rival_footprint), "measured in this run"
            figures["loss_difference"] = abs(lines[0]["loss"] - rival[0]["loss"]) / abs(rival[0]["loss"])
        figures["ratio"] = figures["conclave"]["peak_above_footprint_mib"] / figures["rival_mib"]
        results[configuration.name] = figures
        print_row(configuration.name, figures)

    ratios = [results[configuration.name]["ratio"] for configuration in CONFIGURATIONS if configuration.name in results and not configuration.offload]
    if not ratios:
        return 0
    print(f"{len(ratios)} configurations of equal work: {statistics.mean(ratios):.3f} of the rival's memory on average, {max(ratios):.3f} at most")
    output = options.output or RESULTS / f"memory-fp32-world{options.world}.json"
    if options.only and not options.output:
        return 0  # a part is not the result
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({
        "benchmark": "memory", "date": datetime.date.today().isoformat(),
        "options": {key: value for key, value in vars(options).items() if key not in ("output", "tcmalloc")},
        "machine": {"processor": processor_name(), "cores": os.cpu_count()},
        "footprint_mib": mebibytes(footprint), "mean_ratio": statistics.mean(ratios), "highest_ratio": max(ratios), "configurations": results,
    }, indent=1) + "\n")
    print(f"result: {os.path.relpath(output)}")
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[configuration.name for configuration in CONFIGURATIONS], help="these configurations alone")
    parser.add_argument("--steps", type=int, default=5, help="steps of a run (default 5)")
    parser.add_argument("--rival", action="store_true", help="run the rival as well, in place of its recorded figures")
    parser.add_argument("--tcmalloc", default="auto", metavar="PATH", help="what the rival preloads: a path, auto (the system's, if any) or none")
    parser.add_argument("--output", type=Path, help="the result (default: benchmarks/results/memory-....json)")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be at least 2: the first step allocates what the next ones use again")
    # A learning rate under which routing stays that of the checkpoint: in a few steps of a high one it collapses onto few experts.
    options.lr = 1e-6
    options.experts, options.choices, options.world, options.precision, options.rival_experts, options.rate = 8, 2, 2, "fp32", "grouped_mm", None
    return options


if __name__ == "__main__":
    sys.exit(exit_code_of(measure, parse_options()))

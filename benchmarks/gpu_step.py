"""Whole training steps on one GPU of a Mixtral-shaped model that fills it, sequences of 4096 tokens: model-FLOPs utilization of the dense rate that the run
itself measures, peak memory beside what `conclave plan` says, and what recomputation and offloading cost.

    ./dev gpu-bench step
    ./dev gpu-bench step --ways keep full

Needs no data but random tokens. Exit code 2 where there is no GPU; with --check 1 when a number misses what is wanted of it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from gpu_layer import name_of_gpu, write_results
from sides import BenchmarkError, exit_code_of, model_config

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from small_job import write_tokens

# 2.3 thousand million parameters, of which 0.7 are used by each token: 40 GB of weights, gradients and optimizer in fp32.
SHAPE = dict(vocab_size=32000, hidden_size=2048, intermediate_size=7168, num_hidden_layers=6, num_attention_heads=16, num_key_value_heads=4)
SEQUENCE = 4096
WAYS = {
    "keep": {"memory.activation_checkpointing": "none"},
    "selective": {"memory.activation_checkpointing": "selective"},
    "full": {"memory.activation_checkpointing": "full"},
    "full, offloaded": {"memory.activation_checkpointing": "full", "memory.activation_offloading": True},
}
WANTED = {"mfu": 0.45, "memory": 0.05, "offloading": 0.05}


def make_job(folder: Path, options: argparse.Namespace) -> Path:
    (folder / "config.json").write_text(json.dumps(model_config(SHAPE, 8, 2)))
    random = np.random.default_rng(5)
    write_tokens(folder / "tokens", [random.integers(0, SHAPE["vocab_size"], SEQUENCE + 1) for _ in range(options.batch * (options.steps + 2))])
    job = {"run": {"output_dir": str(folder / "out"), "steps": options.steps, "device": "cuda"}, "model": {"config": str(folder / "config.json")},
           "data": {"train": str(folder / "tokens"), "sequence_length": SEQUENCE, "micro_batch_size": options.batch},
           "precision": {"compute": "bf16"}, "checkpoint": {"every": 0, "resume": "never"}, "metrics": {"tensorboard": False}}
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


def conclave(*words) -> str:
    done = subprocess.run([os.environ.get("CONCLAVE_PROGRAM", "build/conclave"), *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchmarkError(f"conclave {words[0]} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def planned_peak(job: Path, overrides: list) -> int:
    plan = json.loads(conclave("plan", job, "--device", "h100-80", "--json", *overrides))
    return max(of["peak_bytes"] for of in plan["classes"])


def measure_way(folder: Path, job: Path, keys: dict) -> dict:
    overrides = [word for key, value in keys.items() for word in ("--set", f"{key}={str(value).lower()}")]
    (folder / "out/metrics.jsonl").unlink(missing_ok=True)
    conclave("train", job, *overrides)
    lines = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
    settled = lines[len(lines) // 2:]
    middle = {name: statistics.median(line[name] for line in settled) for name in ("step_seconds", "tokens_per_second", "mfu")}
    peak = max(line["peak_memory_bytes"] for line in lines)
    planned = planned_peak(job, overrides)
    return {**middle, "peak_memory_bytes": peak, "planned_bytes": planned, "off_plan": peak / planned - 1}


def measure(options: argparse.Namespace) -> int:
    gpu = name_of_gpu()
    if gpu is None:
        return 2
    print(gpu)
    results, missed = {}, []
    print(f"{'activations':<17}{'step s':>9}{'tokens/s':>11}{'MFU':>7}{'peak GiB':>10}{'of plan':>9}")
    with tempfile.TemporaryDirectory() as name:
        job = make_job(Path(name), options)
        for way in options.ways:
            try:
                result = results[way] = measure_way(Path(name), job, WAYS[way])
            except BenchmarkError as error:
                print(f"{way:<17}{str(error).splitlines()[-1]}", flush=True)
                missed.append(f"{way} did not run")
                continue
            print(f"{way:<17}{result['step_seconds']:>9.3f}{result['tokens_per_second']:>11.0f}{result['mfu']:>7.3f}"
                  f"{result['peak_memory_bytes'] / 2**30:>10.2f}{1 + result['off_plan']:>9.3f}", flush=True)
            if abs(result["off_plan"]) > WANTED["memory"]:
                missed.append(f"peak memory, {way}")
    if results and max(result["mfu"] for result in results.values()) < WANTED["mfu"]:
        missed.append("MFU")
    if {"full", "full, offloaded"} <= results.keys():
        cost = results["full, offloaded"]["step_seconds"] / results["full"]["step_seconds"] - 1
        print(f"offloading costs {100 * cost:.1f} % of a step with recomputation alone")
        if cost > WANTED["offloading"]:
            missed.append("cost of offloading")
    print("misses what is wanted: " + (", ".join(missed) if missed else "nothing"))
    write_results(options.output, gpu, results)
    return 1 if options.check and missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=2, help="sequences a micro-step")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a number misses what is wanted of it")
    parser.add_argument("--output", type=Path, help="write all numbers there, as JSON")
    return exit_code_of(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())

"""Whole training steps on one GPU of a Mixtral-shaped model that fills it, sequences of 4096 tokens: model-FLOPs utilization of the dense rate that the run
itself measures, peak memory beside what `conclave plan` says, what recomputation and offloading cost, and Transformers under PyTorch's `fully_shard` at the
same work.

    ./dev gpu-bench step
    ./dev gpu-bench step --ways keep full --no-rivals
    ./dev gpu-bench step --batch 4

The model has 2.3 thousand million parameters, of which a token uses 0.7; weights, gradients and two moments in fp32 are 36.9 GB, whatever the batch. A step
reads `batch` sequences of random tokens and does all that training does with them: forward, backward, the norm of the gradients, clipping, AdamW. The last
three pass over those 36.9 GB, which takes as long for one sequence as for many (some 30 ms on an H100, by its memory's rate), so the batch is as large as the
GPU takes: the largest whose peak with all activations kept is, by `plan`, under 90 % of its memory. The learning rate is next to zero, so that routing stays
even, and losses near the logarithm of the vocabulary, which is what they are checked by.

The rival (fsdp2_rival.py) has experts by grouped_mm, flash attention, bf16 parameters beside fp32 ones, gradients reduced in fp32, and fused AdamW. It trains
on the same tokens and as many a step; where they do not fit at once, in micro-steps as large as fit. The best way of each side is compared.

Times are medians over the second half of the steps, but for the last, which is profiled: `idle` is the share of it in which the GPU had nothing to do, so all
that launching its work faster (CUDA graphs) could save. A way that fails is said to, and the others go on. Exit code 2 where there is no GPU; with --check 1 when
a way fails or a number misses what is wanted of it.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml
from device_trace import idle_share
from gpu_layer import PATIENCE_SECONDS, name_of_gpu, reason_in, write_results
from sides import OPTIMIZER, ROOT, SEED, SHAPES, BenchmarkError, exit_code_of, find_program, model_config, read_lines, run_rival

sys.path.append(str(ROOT / "tests"))
from small_job import write_tokens

# With the hidden option --device cpu all of this runs where there is no GPU, so small that only its working can be seen.
MODELS = {
    "cuda": dict(shape=dict(vocab_size=32000, hidden_size=2048, intermediate_size=7168, num_hidden_layers=6, num_attention_heads=16, num_key_value_heads=4),
                 sequence=4096, precision="bf16", planned_as="h100-80"),
    "cpu": dict(shape=SHAPES["tiny"], sequence=128, precision="fp32", planned_as="cpu"),
}
WAYS = {
    "keep": {"memory.activation_checkpointing": "none"},
    "selective": {"memory.activation_checkpointing": "selective"},
    "full": {"memory.activation_checkpointing": "full"},
    "full, offloaded": {"memory.activation_checkpointing": "full", "memory.activation_offloading": True},
}
RIVAL_WAYS = {"rival, full": dict(recompute=True), "rival, keep": dict(recompute=False)}
RIVAL = SimpleNamespace(world=1, rival_experts="grouped_mm", rate=None)
LEARNING_RATE = 1e-6
SHARE_OF_MEMORY = 0.9
# Shares, but for the rate (tokens a second over the rival's) and the loss (how far from the logarithm of the vocabulary).
WANTED = {"mfu": 0.45, "memory": 0.05, "offloading": 0.05, "rate": 2.0, "loss": 1.0}


class Work:
    """What both sides train on, in a folder: the model's configuration, random tokens, and the job."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.folder, self.steps = folder, options.steps
        self.device, model = options.device, MODELS[options.device]
        self.sequence, self.precision, self.planned_as = model["sequence"], model["precision"], model["planned_as"]
        self.vocabulary = model["shape"]["vocab_size"]
        self.config, self.checkpoint, self.data = folder / "config.json", None, folder / "tokens"
        self.config.write_text(json.dumps(model_config(model["shape"], 8, 2)))
        self.batch = options.batch or self.largest_batch(options.memory or memory_of_gpu())
        random = np.random.default_rng(5)
        write_tokens(self.data, [random.integers(0, self.vocabulary, self.sequence + 1) for _ in range(self.batch * (self.steps + 2))])
        self.job = self.job_of(self.batch)

    def job_of(self, batch: int) -> Path:
        job = {
            "run": {"output_dir": str(self.folder / "out"), "steps": self.steps, "seed": SEED, "device": self.device},
            "model": {"config": str(self.config)},
            "data": {"train": str(self.data), "sequence_length": self.sequence, "micro_batch_size": batch},
            "precision": {"compute": self.precision},
            "optimizer": {**OPTIMIZER, "lr": LEARNING_RATE},
            "schedule": {"kind": "constant"},
            "checkpoint": {"every_minutes": 0, "resume": "never"},
            "metrics": {"tensorboard": False},
        }
        file = self.folder / "job.yaml"
        file.write_text(yaml.safe_dump(job))
        return file

    def planned_peak(self, job: Path, overrides: list) -> int:
        plan = json.loads(conclave("plan", job, "--device", self.planned_as, "--json", *overrides))
        return max(of["peak_bytes"] for of in plan["classes"])

    def largest_batch(self, memory: int) -> int:
        def fits(batch: int) -> bool:
            return self.planned_peak(self.job_of(batch), words_of({"memory.activation_checkpointing": "none"})) <= SHARE_OF_MEMORY * memory

        least, most = 0, 1
        while fits(most):
            least, most = most, 2 * most
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if fits(middle) else (least, middle)
        if least == 0:
            raise BenchmarkError(f"by its plan not one sequence fits into {100 * SHARE_OF_MEMORY:.0f} % of {memory / 2**30:.1f} GiB")
        return least


def memory_of_gpu() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def words_of(keys: dict) -> list[str]:
    return [word for key, value in keys.items() for word in ("--set", f"{key}={str(value).lower()}")]


def conclave(*words) -> str:
    try:
        done = subprocess.run([find_program(), *map(str, words)], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"conclave {words[0]} took more than {PATIENCE_SECONDS} s") from None
    if done.returncode != 0:
        raise BenchmarkError(f"conclave {words[0]} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def settled(lines: list[dict], name: str) -> float:
    return statistics.median(line[name] for line in lines[len(lines) // 2 :])


def series_of(lines: list[dict]) -> dict:
    """What tells that the steps were computed."""
    return {"lm_losses": [line["lm_loss"] for line in lines], "grad_norms": [line["grad_norm"] for line in lines]}


def measure_way(work: Work, keys: dict) -> dict:
    metrics = work.folder / "out/metrics.jsonl"
    metrics.unlink(missing_ok=True)
    conclave("train", work.job, "--profile", f"{work.steps}:{work.steps}", *words_of(keys))
    lines = read_lines(metrics)
    peak, planned = max(line["peak_memory_bytes"] for line in lines), work.planned_peak(work.job, words_of(keys))
    profile = work.folder / f"out/profile/steps-{work.steps}-{work.steps}.rank-0.json"
    return {**{name: settled(lines[:-1], name) for name in ("step_seconds", "tokens_per_second", "mfu")}, "peak_memory_bytes": peak, "planned_bytes": planned,
            "off_plan": peak / planned - 1, "idle": idle_share(profile), "micro_batch_size": work.batch, **series_of(lines)}


def measure_rival(work: Work, keys: dict) -> dict:
    """In micro-steps as large as fit into memory, which only trying tells. In a process each: one that ran out of memory gives it back when it has ended."""
    options = SimpleNamespace(**vars(RIVAL), precision=work.precision, lr=LEARNING_RATE)
    micro_batch = work.batch
    while True:
        try:
            lines = run_rival(None, work, options, work.batch, work.sequence, work.steps, seconds=PATIENCE_SECONDS,
                              more={"device": work.device, "micro-batch": micro_batch}, **keys)
            break
        except BenchmarkError as error:
            if not re.search("out of memory|ALLOC_FAILED", str(error)) or micro_batch == 1:
                raise
            micro_batch = math.ceil(micro_batch / 2)
    seconds = settled(lines, "step_seconds")
    peak = max(line.get("peak_memory_bytes") or line["peak_resident_bytes"] for line in lines)
    return {"step_seconds": seconds, "tokens_per_second": work.batch * work.sequence / seconds, "peak_memory_bytes": peak,
            "micro_batch_size": micro_batch, **series_of(lines)}


def share_of(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"


def show(way: str, result: dict) -> None:
    if "error" in result:
        print(f"{way:<17}{reason_in(result['error'])}", flush=True)
        return
    of_plan = f"{result['mfu']:>7.3f}{1 + result['off_plan']:>9.3f}{share_of(result['idle']):>7}" if "mfu" in result else f"{'':23}"
    print(f"{way:<17}{result['step_seconds']:>9.3f}{result['tokens_per_second']:>11.0f}{result['peak_memory_bytes'] / 2**30:>10.2f}{of_plan}"
          f"{result['micro_batch_size']:>13}", flush=True)


def misses_of(results: dict, vocabulary: int) -> list[str]:
    """What is not as wanted, way by way."""
    missed = []
    for way, result in results.items():
        if "error" in result:
            missed.append(f"{way} did not run")
            continue
        if "off_plan" in result and abs(result["off_plan"]) > WANTED["memory"]:
            missed.append(f"peak memory, {way}")
        if not all(abs(loss - math.log(vocabulary)) <= WANTED["loss"] for loss in result["lm_losses"]):
            missed.append(f"losses, {way}")
    return missed


def compare(results: dict) -> tuple[dict, list[str]]:
    """Numbers of several ways, printed; and which of them are not as wanted."""
    seen, missed = {}, []
    ran = {way: result for way, result in results.items() if "error" not in result}
    ours, rivals = ({way: result for way, result in ran.items() if way in ways} for ways in (WAYS, RIVAL_WAYS))
    if ours:
        seen["mfu"] = max(result["mfu"] for result in ours.values())
        if seen["mfu"] < WANTED["mfu"]:
            missed.append("MFU")
    if {"full", "full, offloaded"} <= ours.keys():
        seen["offloading"] = ours["full, offloaded"]["step_seconds"] / ours["full"]["step_seconds"] - 1
        print(f"offloading costs {100 * seen['offloading']:.1f} % of a step with recomputation alone")
        if seen["offloading"] > WANTED["offloading"]:
            missed.append("cost of offloading")
    if ours and rivals:
        best, rival = (max(of, key=lambda way: of[way]["tokens_per_second"]) for of in (ours, rivals))
        seen["rate"] = ours[best]["tokens_per_second"] / rivals[rival]["tokens_per_second"]
        print(f"{best} has {seen['rate']:.2f} times the tokens/s of {rival}")
        if seen["rate"] < WANTED["rate"]:
            missed.append("tokens/s over the rival's")
    return seen, missed


def measure(options: argparse.Namespace) -> int:
    gpu = name_of_gpu(options.device)
    if gpu is None:
        return 2
    results = {}
    with tempfile.TemporaryDirectory() as name:
        work = Work(Path(name), options)
        print(f"{gpu}: {work.batch} sequences of {work.sequence} tokens a step")
        print(f"{'activations':<17}{'step s':>9}{'tokens/s':>11}{'peak GiB':>10}{'MFU':>7}{'of plan':>9}{'idle':>7}{'micro-batch':>13}")
        measures = {way: (measure_way, WAYS[way]) for way in options.ways}
        measures |= {way: (measure_rival, keys) for way, keys in RIVAL_WAYS.items() if options.rivals}
        for way, (measure_one, keys) in measures.items():
            try:
                results[way] = measure_one(work, keys)
            except BenchmarkError as error:
                results[way] = {"error": str(error)}
            show(way, results[way])
            write_results(options.output, gpu, {"batch": work.batch, "ways": results})  # what is there, should the next one not end
    seen, missed = compare(results)
    missed = misses_of(results, work.vocabulary) + missed
    print("misses what is wanted: " + (", ".join(missed) if missed else "nothing"))
    write_results(options.output, gpu, {"batch": work.batch, "ways": results, "compared": seen, "missed": missed})
    return 1 if options.check and missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--no-rivals", dest="rivals", action="store_false", help="without Transformers under fully_shard")
    parser.add_argument("--steps", type=int, choices=range(2, 1001), default=8, metavar="2..1000")
    parser.add_argument("--batch", type=int, help="sequences a step (default: as many as the GPU's memory takes)")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a number misses what is wanted of it")
    parser.add_argument("--output", type=Path, help="write all numbers there, as JSON")
    parser.add_argument("--device", choices=MODELS, default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)  # bytes to be filled; default: the GPU's
    return exit_code_of(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())

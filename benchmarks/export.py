"""Export of a checkpoint to a Hugging Face folder, against a plain copy of the same bytes on the same disk.

    ./dev bench export
    ./dev bench export --gigabytes 2 --rounds 7

The checkpoint is made once (random weights, imported). Rounds alternate: `conclave ckpt export` (which reads, verifies hashes, writes, flushes), then `cp` of
the exported folder and fsync of every copied file and folder. Sources are dropped from the page cache for both.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy
from dcp_rival import forget_pages
from safetensors.numpy import save_file
from sides import RESULTS, BenchmarkError, exit_code_of, processor_name, summary_of

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "runs/bench/export"
HIDDEN, INNER, EXPERTS, VOCABULARY = 1024, 3584, 8, 8192


def config(layers: int) -> dict:
    return {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
            "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False, "num_local_experts": EXPERTS,
            "num_experts_per_tok": 2}


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    found = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")}
        found |= {f"{prefix}self_attn.{name}_proj.weight": (rows, HIDDEN) for name, rows in (("q", 1024), ("k", 256), ("v", 256), ("o", 1024))}
        found |= {f"{prefix}mlp.gate.weight": (EXPERTS, HIDDEN), f"{prefix}mlp.experts.gate_up_proj": (EXPERTS, 2 * INNER, HIDDEN),
                  f"{prefix}mlp.experts.down_proj": (EXPERTS, HIDDEN, INNER)}
    return found


def make_checkpoint(program: Path, gigabytes: float) -> Path:
    """The checkpoint of a model of about so many bytes, made anew unless it is there."""
    layers = max(1, round((gigabytes * 1e9 / 4 - 2 * VOCABULARY * HIDDEN) / (3 * EXPERTS * INNER * HIDDEN)))
    folder = FOLDER / f"{layers}-layers"
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        random = numpy.random.default_rng(1234)
        model = folder / "model"
        model.mkdir(parents=True, exist_ok=True)
        (model / "config.json").write_text(json.dumps(config(layers)))
        save_file({name: random.standard_normal(shape, numpy.float32) for name, shape in shapes(layers).items()}, model / "model.safetensors")
        run([program, "ckpt", "import", model, checkpoint, "--quiet"])
        shutil.rmtree(model)
    return checkpoint


def run(command: list) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stderr}")


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def seconds_of(work) -> float:
    os.sync()  # what earlier work left to be written is no part of this
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def copy(source: Path, target: Path) -> None:
    run(["cp", "-r", "--reflink=never", source, target])
    for file in target.iterdir():
        flush(file)
    flush(target)
    flush(target.parent)


def print_table(bytes_written: int, summary: dict, rounds: int) -> None:
    print(f"\n{bytes_written / 1e9:.2f} GB, {rounds} rounds; median (lowest to highest)")
    for side in ("export", "copy"):
        seconds = summary[f"{side}_seconds"]
        print(f"{side:8} {seconds['median']:7.2f} s ({seconds['lowest']:.2f} to {seconds['highest']:.2f})  {bytes_written / 1e6 / seconds['median']:6.0f} MB/s")
    ratio = summary["ratio_by_round"]
    print(f"export takes {ratio['median']:.2f} x as long as the copy (by round {ratio['lowest']:.2f} to {ratio['highest']:.2f})")


def measure(options: argparse.Namespace) -> None:
    program = Path(os.environ.get("CONCLAVE_PROGRAM", ROOT / "build/conclave"))
    if not program.exists():
        raise BenchmarkError(f"{program} does not exist. Build it: ./dev build")
    checkpoint = make_checkpoint(program, options.gigabytes)
    exported, copied = FOLDER / "exported", FOLDER / "copied"
    loads, seconds = [], {"export": [], "copy": []}
    for number in range(options.rounds + 1):  # the first is not timed
        for folder in (exported, copied):
            shutil.rmtree(folder, ignore_errors=True)
        loads.append(os.getloadavg()[0])
        forget_pages(checkpoint)
        taken = {"export": seconds_of(lambda: run([program, "ckpt", "export", checkpoint, exported, "--dtype", options.dtype, "--quiet"]))}
        forget_pages(exported)
        taken["copy"] = seconds_of(lambda: copy(exported, copied))
        if number == 0:
            continue
        for side, value in taken.items():
            seconds[side].append(value)
        print(f"round {number}: export {taken['export']:.2f} s, copy {taken['copy']:.2f} s", flush=True)
    bytes_written = sum(file.stat().st_size for file in exported.iterdir())
    for folder in (exported, copied):
        shutil.rmtree(folder)
    summary = {f"{side}_seconds": summary_of(values) for side, values in seconds.items()}
    summary["ratio_by_round"] = summary_of([a / b for a, b in zip(seconds["export"], seconds["copy"], strict=True)])
    summary["ratio"] = statistics.median(seconds["export"]) / statistics.median(seconds["copy"])
    name = f"{bytes_written / 1e9:.1f}GB-{options.dtype}"
    result = {"benchmark": "export", "name": name, "date": datetime.date.today().isoformat(), "bytes": bytes_written,
              "options": {"gigabytes": options.gigabytes, "rounds": options.rounds, "dtype": options.dtype},
              "machine": {"processor": processor_name(), "cores": os.cpu_count(), "load_before_each_round": loads}, "seconds": seconds, "summary": summary}
    output = options.output or RESULTS / f"export-{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print_table(bytes_written, summary, options.rounds)
    print(f"result: {os.path.relpath(output)}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of fp32 parameters, about (default 1); the checkpoint takes three times as much")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32", help="of the export (default fp32)")
    parser.add_argument("--output", type=Path, help="the result (default: benchmarks/results/export-....json)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(exit_code_of(measure, parse_options()))

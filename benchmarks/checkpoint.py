"""Saving and loading checkpoints: how long training waits, and how fast they are written and read, beside a plain file and PyTorch's own.

    ./dev bench checkpoint --shape small --rounds 3

A round is, on the same disk one after the other: a plain file of the same bytes written in blocks and flushed, then read; a run that saves while its steps
wait; a run that saves behind its steps; a run that resumes from what was saved; and torch.distributed.checkpoint with as many bytes on as many ranks.
Everything that is read was dropped from the page cache first. See benchmarks/README.md for what the numbers mean.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml
from sides import ROOT, RESULTS, SHAPES, WORK, BenchmarkError, exit_code_of, model_config, processor_name, read_lines, run, summary_of

from conclave.data.indexed_writer import IndexedWriter, token_type
from dcp_rival import forget_pages

RIVAL = ROOT / "benchmarks/dcp_rival.py"
BLOCK = 8 << 20


def plain_file(folder: Path, size: int) -> tuple[float, float]:
    """Seconds to write and flush, and to read, one file of `size` bytes from start to end."""
    block = np.random.default_rng(1).integers(0, 256, BLOCK, dtype=np.uint8)  # no disk may compress it
    folder.mkdir(parents=True)
    start = time.perf_counter()
    with open(folder / "plain", "wb", buffering=0) as file:
        for begin in range(0, size, BLOCK):
            file.write(block[: min(BLOCK, size - begin)])
        os.fsync(file.fileno())
    written = time.perf_counter() - start
    forget_pages(folder)
    start = time.perf_counter()
    with open(folder / "plain", "rb", buffering=0) as file:
        while file.readinto(block):
            pass
    read = time.perf_counter() - start
    shutil.rmtree(folder)
    return written, read


class Case:
    """A job with random weights and tokens, on which only saving and loading are looked at."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.folder = WORK / f"checkpoint-{options.shape}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.output = self.folder / "run"
        self.program = Path(os.environ.get("CONCLAVE_PROGRAM", ROOT / "build/conclave"))
        if not self.program.exists():
            raise BenchmarkError(f"{self.program} does not exist. Build it: ./dev build")
        shape = SHAPES[options.shape]
        (self.folder / "config.json").write_text(json.dumps(model_config(shape, 8, 2)))
        tokens = np.random.default_rng(2).integers(0, shape["vocab_size"], 1_000_000).astype(token_type(shape["vocab_size"]))
        with IndexedWriter(self.folder / "tokens", tokens.dtype) as writer:
            writer.append(tokens, [len(tokens)])
            writer.publish()

    def train(self, steps: int, background: bool, log: str) -> list[dict]:
        options = self.options
        job = {
            "run": {"output_dir": str(self.output), "steps": steps, "device": "cpu"},
            "model": {"config": str(self.folder / "config.json")},
            "data": {"train": str(self.folder / "tokens"), "sequence_length": options.sequence, "micro_batch_size": options.batch},
            "parallel": {"expert_parallel_degree": options.world},
            "precision": {"compute": "fp32"},
            "schedule": {"kind": "constant"},
            "checkpoint": {"every": options.every, "every_minutes": 0, "keep": 1, "async": background},
            "metrics": {"tensorboard": False},
        }
        file = self.folder / "job.yaml"
        file.write_text(yaml.safe_dump(job))
        run([self.program, "train", file, "--ranks", options.world], self.folder / log)
        return read_lines(self.output / "metrics.jsonl")


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def saves_of(lines: list[dict], every: int) -> list[dict]:
    """Of each save but the first (buffers are made) and the last (always waited for): seconds, and what training waited."""
    found = []
    for line in lines:
        if "save_seconds" not in line or line["saved_step"] == every:
            continue
        # The waits of a save are told by the records after it, up to the one that tells of its end.
        waits = [other["save_stall_seconds"] for other in lines if line["saved_step"] < other["step"] <= line["step"]]
        found.append({"seconds": line["save_seconds"], "stall": sum(waits), "bytes": line["save_bytes"]})
    return found


def steps_during(lines: list[dict], every: int) -> tuple[list[float], list[float]]:
    """Step times while a save was behind them, and while none was. The first interval, without any save, is left out."""
    during, others = [], []
    saving = {step for line in lines if "saved_step" in line for step in range(line["saved_step"] + 1, line["step"] + 1)}
    for line in lines[every:]:
        (during if line["step"] in saving else others).append(line["step_seconds"])
    return during, others


def one_round(case: Case) -> dict:
    options = case.options
    steps = options.every * (options.saves + 2)
    shutil.rmtree(case.output, ignore_errors=True)
    waiting = saves_of(case.train(steps, False, "sync.log"), options.every)
    size = bytes_of(case.output / "checkpoints")
    shutil.rmtree(case.output)
    written, read = plain_file(case.folder / "plain", size)
    lines = case.train(steps, True, "async.log")
    behind = saves_of(lines, options.every)
    during, others = steps_during(lines, options.every)
    if not behind or "waiting for the checkpoint" in (case.folder / "async.log").read_text():
        raise BenchmarkError("a save was not done when the next one began: give a larger --every")
    forget_pages(case.output / "checkpoints")
    case.train(steps + 1, True, "resume.log")
    loaded = re.search(r"loaded step \d+ .*: ([\d.]+) GB in ([\d.]+) s, ([\d.]+) GB/s", (case.folder / "resume.log").read_text())
    if loaded is None:
        raise BenchmarkError(f"{case.folder / 'resume.log'} tells no rate of loading")
    shutil.rmtree(case.output)
    rival_lines = case.folder / "dcp.jsonl"
    run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", options.world, RIVAL, "--folder", case.folder / "dcp", "--bytes",
         size, "--tensors", 64, "--rounds", 1, "--output", rival_lines], case.folder / "dcp.log")
    (rival,) = read_lines(rival_lines)
    shutil.rmtree(case.folder / "dcp", ignore_errors=True)

    sync_seconds = statistics.median(save["seconds"] for save in waiting)
    stall = statistics.median(save["stall"] for save in behind)
    write_rate = size / sync_seconds
    read_rate = float(loaded[3]) * 1e9
    rival_bytes = rival["bytes"]
    return {
        "bytes": size,
        "plain_write_gb_per_second": size / written / 1e9,
        "plain_read_gb_per_second": size / read / 1e9,
        "sync_save_seconds": sync_seconds,
        "async_stall_seconds": stall,
        "async_save_seconds": statistics.median(save["seconds"] for save in behind),
        "stall_share_of_sync_save": stall / sync_seconds,
        "step_seconds": statistics.median(others) if others else None,
        "step_seconds_while_saving": statistics.median(during) if during else None,
        "write_share_of_plain": write_rate / (size / written),
        "read_share_of_plain": read_rate / (size / read),
        "write_gb_per_second": write_rate / 1e9,
        "read_gb_per_second": read_rate / 1e9,
        "dcp_write_gb_per_second": rival_bytes / rival["save_seconds"] / 1e9,
        "dcp_read_gb_per_second": rival_bytes / rival["load_seconds"] / 1e9,
        "dcp_async_stall_seconds": rival["async_stall_seconds"],
        "dcp_stall_share_of_sync_save": rival["async_stall_seconds"] / rival["save_seconds"],
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the model (default: small, 190 M parameters, 2.3 GB of state)")
    parser.add_argument("--world", type=int, default=2, help="ranks (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="of all that is compared (default: 3)")
    parser.add_argument("--every", type=int, default=12, help="steps between saves; a save must be done before the next one (default: 12)")
    parser.add_argument("--saves", type=int, default=2, help="saves counted in a run, beside the first and the last (default: 2)")
    parser.add_argument("--batch", type=int, default=1, help="sequences a rank and step (default: 1)")
    parser.add_argument("--sequence", type=int, default=256, help="tokens of a sequence (default: 256)")
    parser.add_argument("--output", type=Path, help="the result file (default: in benchmarks/results)")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> int:
    case = Case(options)
    loads, rounds = [], []
    for number in range(options.rounds):
        loads.append(os.getloadavg()[0])
        rounds.append(one_round(case))
        last = rounds[-1]
        print(f"round {number + 1}: stall {last['stall_share_of_sync_save']:.1%} of a save of {last['sync_save_seconds']:.2f} s; writes at "
              f"{last['write_share_of_plain']:.2f}, reads at {last['read_share_of_plain']:.2f} of a plain file's rate", flush=True)
    summary = {key: summary_of([one[key] for one in rounds]) for key in rounds[0] if all(one[key] is not None for one in rounds)}
    name = f"{options.shape}-world{options.world}"
    result = {
        "benchmark": "checkpoint", "name": name, "date": datetime.date.today().isoformat(),
        "command": f"./dev bench checkpoint --shape {options.shape} --world {options.world} --rounds {options.rounds} --every {options.every}",
        "options": {key: value for key, value in vars(options).items() if key != "output"}, "rival": {"torch": version("torch")},
        "machine": {"processor": processor_name(), "cores": os.cpu_count(), "load_before_each_round": loads}, "summary": summary, "rounds": rounds,
    }
    output = options.output or RESULTS / f"checkpoint-{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{name}: {rounds[0]['bytes'] / 1e9:.2f} GB; {options.rounds} rounds; median (lowest to highest)")
    for key, values in summary.items():
        print(f"  {key:32} {values['median']:10.4g} ({values['lowest']:.4g} to {values['highest']:.4g})")
    print(f"result: {os.path.relpath(output)}")
    if loads[0] > 0.7:
        print(f"note: the load was {loads[0]:.1f} before the first round; other programs were running, so the times mean little")
    shutil.rmtree(case.folder)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(measure, parse_options()))

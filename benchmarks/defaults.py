"""Which value of a key should be its default: the quickstart's job and one of more and smaller experts, with each value, over several seeds.

The two values of a comparison run one after the other with the same seed, in turned order from round to round, so that what the machine does beside falls on
both. Printed are, for each model and seed, the ratio of the step times (the lower quartile of a run's steps, which other work disturbs least; of rounds, the
median of their ratios) and what the runs learned: the training loss of the last 25 steps, the validation loss, the imbalance of the last 25 steps and the dead experts at the end.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from sides import ROOT, WORK, BenchmarkError, exit_code_of, find_program, processor_name, read_lines, run

JOB = ROOT / "examples/quickstart/job.yaml"
CONFIG = json.loads((ROOT / "examples/quickstart/model/config.json").read_text())
DATA = ROOT / "runs/quickstart/data"
FOLDER = WORK / "defaults"
TAIL = 25  # steps whose losses and imbalances are averaged at the end
UNTIMED = 3

MODELS = {
    "quickstart": CONFIG,
    "fine-grained": {**CONFIG, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3, "num_local_experts": 16,
                     "num_experts_per_tok": 4, "intermediate_size": 64},
}


@dataclass(frozen=True)
class Comparison:
    key: str
    values: tuple[str, str]  # the ratio is the second's time over the first's
    keys: dict = field(default_factory=dict)  # of both
    steps: int = 200
    rounds: int = 1  # runs of each value and seed: more where times are what is asked


COMPARISONS = {
    "overload": Comparison("moe.overload", ("none", "spill"), steps=40, rounds=3),
    "aux_loss_layers": Comparison("moe.aux_loss_layers", ("together", "each")),
    "router": Comparison("precision.router", ("compute", "fp32"), {"precision.compute": "bf16"}),
}


def prepare() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not (DATA / "stdlib-train.idx").exists():
        stages = "import run; run.make_tokenizer(); run.make_data()"
        subprocess.run([sys.executable, "-c", stages], cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": f"{ROOT / 'examples/quickstart'}:{ROOT / 'python'}"})
    for name, config in MODELS.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(config))


def train(model: str, seed: int, steps: int, keys: dict) -> list[dict]:
    """The records of a run."""
    output = FOLDER / f"run-{os.getpid()}"
    shutil.rmtree(output, ignore_errors=True)
    keys = {"run.name": "defaults", "run.output_dir": output, "run.steps": steps, "run.seed": seed, "model.config": FOLDER / f"{model}.json",
            "checkpoint.every": 0, "checkpoint.resume": "never", "validation.every": steps, "metrics.tensorboard": "false", **keys}
    overrides = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    run([find_program(), "train", JOB, "--ranks", 2, *overrides], FOLDER / "train.log")
    records = read_lines(output / "metrics.jsonl")
    if len(records) != steps:
        raise BenchmarkError(f"{output} has {len(records)} steps, not {steps}")
    return records


def outcome(records: list[dict]) -> dict:
    tail = records[-TAIL:]
    return {"loss": statistics.mean(record["lm_loss"] for record in tail), "validation_loss": records[-1]["validation_loss"],
            "imbalance": statistics.mean(record["expert_imbalance"] for record in tail), "dead_experts": records[-1]["dead_experts"],
            "step_seconds": statistics.quantiles((record["step_seconds"] for record in records[UNTIMED:]), n=4)[0]}


def compare(comparison: Comparison, model: str, seed: int, steps: int) -> dict:
    outcomes: dict[str, dict] = {}
    ratios = []
    for round_number in range(comparison.rounds):
        order = comparison.values if (seed + round_number) % 2 == 0 else comparison.values[::-1]
        outcomes = {value: outcome(train(model, seed, steps, {**comparison.keys, comparison.key: value})) for value in order}
        first, second = (outcomes[value]["step_seconds"] for value in comparison.values)
        ratios.append(second / first)
    return {"model": model, "seed": seed, "ratio": statistics.median(ratios), "ratios": ratios, **{value: outcomes[value] for value in comparison.values}}


def show(comparison: Comparison, result: dict) -> None:
    texts = []
    for value in comparison.values:
        of = result[value]
        texts.append(f"{value}: loss {of['loss']:.3f}, validation {of['validation_loss']:.3f}, imbalance {of['imbalance']:.2f}, {of['dead_experts']:.0f} dead")
    print(f"{result['model']:13} seed {result['seed']}   time x {result['ratio']:.3f}   {'   '.join(texts)}", flush=True)


def measure(options: argparse.Namespace) -> None:
    prepare()
    print(processor_name())
    for name in options.comparisons:
        comparison = COMPARISONS[name]
        steps = options.steps or comparison.steps
        print(f"\n{comparison.key}: {' against '.join(comparison.values)}, {steps} steps", flush=True)
        for model in options.models:
            for seed in options.seeds:
                show(comparison, compare(comparison, model, seed, steps))


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench defaults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", nargs="+", choices=COMPARISONS, default=list(COMPARISONS), help="only these")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, help="of each run; the default differs from comparison to comparison")
    return exit_code_of(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())

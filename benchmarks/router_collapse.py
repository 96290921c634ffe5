"""From a collapsed router: how each balancing rule brings the load of the experts back.

The model has the quickstart's shape, and in each layer the router gives expert 0 the first choice of every token, by a wide margin: max / mean is E / K, the
most there can be. The quickstart's job then trains it with each rule. The imbalance of every step is printed in windows, and with --write-golden it
replaces the curve in tests/golden and its picture in docs/images.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from sides import ROOT, WORK, BenchmarkError, exit_code_of, find_program, read_lines, run

JOB = ROOT / "examples/quickstart/job.yaml"
MODEL_CONFIG = ROOT / "examples/quickstart/model/config.json"
DATA = "runs/quickstart/data/stdlib-train"
GOLDEN = ROOT / "tests/golden/router_collapse.json"
PICTURE = ROOT / "docs/images/router_collapse.svg"
FOLDER = WORK / "router_collapse"
SEED = 1234
STEPS = 300
WINDOW = 25  # steps; one step's imbalance is that of 2048 tokens, and noisy
EVEN = 1.3
MARGIN = 4.0  # of expert 0's logit over the others': its score is 0.87

# The job's own keys but for these; `balanced` is even by construction. The bias moves by its rate alone; at the default of 0.001, made for long runs, it takes a
# thousand steps to undo a score of 0.87.
RULES = {
    "aux_loss, each layer": {"moe.moe_load_balancing": "aux_loss", "moe.aux_loss_layers": "each"},
    "bias": {"moe.moe_load_balancing": "bias", "moe.bias_update_rate": 0.01},
    "sinkhorn": {"moe.moe_load_balancing": "sinkhorn"},
}


def make_collapsed_model(folder: Path) -> None:
    """A random Mixtral whose routers look at what all tokens have in common, and give it to expert 0."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(SEED)
    model = MixtralForCausalLM(MixtralConfig(**json.loads(MODEL_CONFIG.read_text())))
    tokens = torch.randint(0, model.config.vocab_size, (4, 256))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0.05  # what they have in common
        for layer in model.model.layers:
            seen = []
            hook = layer.post_attention_layernorm.register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.append(output))
            model(tokens)
            hook.remove()
            common = seen[0].flatten(0, 1).mean(0)
            (router,) = (parameter for name, parameter in layer.named_parameters() if name.endswith("gate.weight"))
            router -= torch.outer(router @ common, common) / common.dot(common)
            router[0] += MARGIN * common / common.dot(common)
    model.save_pretrained(folder)


def prepare() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not (ROOT / f"{DATA}.idx").exists():
        stages = "import run; run.make_tokenizer(); run.make_data()"
        subprocess.run([sys.executable, "-c", stages], cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": f"{ROOT / 'examples/quickstart'}:{ROOT / 'python'}"})
    if not (FOLDER / "model/model.safetensors").exists():
        make_collapsed_model(FOLDER / "model")


def data_fingerprint() -> str:
    return hashlib.sha256((ROOT / f"{DATA}.bin").read_bytes()).hexdigest()


def folder_of(rule: str) -> Path:
    return FOLDER / rule.replace(", ", "-").replace(" ", "-")


def run_rule(rule: str, steps: int = STEPS) -> list[dict]:
    """The records of a run with a rule of RULES, from the collapsed model."""
    prepare()
    output = folder_of(rule)
    shutil.rmtree(output, ignore_errors=True)
    keys = {"run.name": f"collapsed router, {rule}", "run.output_dir": output, "run.steps": steps, "model.init_from": FOLDER / "model", "checkpoint.every": 0, "checkpoint.every_minutes": 0,
            "checkpoint.resume": "never", "validation.every": 0, **RULES[rule]}
    overrides = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    run([find_program(), "train", JOB, "--ranks", 2, *overrides], FOLDER / "train.log")
    return read_lines(output / "metrics.jsonl")


def windows(imbalance: list[float]) -> np.ndarray:
    """Means over WINDOW steps."""
    return np.array(imbalance[: len(imbalance) // WINDOW * WINDOW]).reshape(-1, WINDOW).mean(1)


def draw(golden: dict) -> None:
    from conclave.report.charts import GREY, SERIES, new_axes, svg_of

    figure, axes = new_axes(height=3.4, width=7.6)
    for color, (rule, curve) in zip(SERIES, golden["rules"].items()):
        imbalance = np.array(curve["imbalance"])
        axes.plot(np.arange(1, len(imbalance) + 1), imbalance, color=color, linewidth=0.6, alpha=0.35)
        means = windows(curve["imbalance"])
        axes.plot(np.arange(len(means)) * WINDOW + WINDOW / 2, means, color=color, linewidth=2, label=rule)
    axes.axhline(EVEN, color=GREY, linewidth=1, linestyle="--")
    axes.set_xlim(0, STEPS)
    axes.set_ylim(1, 4.1)
    axes.set_xlabel("step")
    axes.set_ylabel("max / mean, mean over layers")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    PICTURE.parent.mkdir(exist_ok=True)
    svg = svg_of(figure, "router-collapse", transparent=False)
    PICTURE.write_text(svg)


def measure(options: argparse.Namespace) -> None:
    golden = {"steps": STEPS, "data_sha256": "", "rules": {}}
    for rule in options.rules:
        done = folder_of(rule) / "metrics.jsonl"
        records = read_lines(done) if options.reuse and done.exists() else run_rule(rule)
        if len(records) != STEPS:
            raise BenchmarkError(f"{done} has {len(records)} steps, not {STEPS}")
        imbalance = [record["expert_imbalance"] for record in records]
        means = windows(imbalance)
        below = next((str((i + 1) * WINDOW) for i, mean in enumerate(means) if mean < EVEN), "never")
        print(f"{rule:22} {' '.join(f'{mean:.2f}' for mean in means)}   below {EVEN} by step {below}; loss {np.mean([r['lm_loss'] for r in records[-WINDOW:]]):.3f}", flush=True)
        golden["rules"][rule] = {"keys": RULES[rule], "imbalance": [round(value, 4) for value in imbalance]}
    golden["data_sha256"] = data_fingerprint()
    if options.write_golden:
        if list(options.rules) != list(RULES):
            raise BenchmarkError("--write-golden needs all rules")
        GOLDEN.write_text(json.dumps(golden) + "\n")
        draw(golden)
        print(f"wrote {GOLDEN.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench router_collapse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), help="only these")
    parser.add_argument("--reuse", action="store_true", help="take the runs that are there, of an earlier call, as they are")
    parser.add_argument("--write-golden", action="store_true", help="replace the golden curve and its picture")
    return exit_code_of(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())

"""The two sides of the benchmarks, Conclave and its rival, made ready for the same work and started on the same ranks of this machine.

Used by the other benchmarks. What is made (checkpoints, tokens) is in runs/bench, and used again.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import yaml
from hosts import HostsError, start_two_ranks, two_hosts

ROOT = Path(__file__).resolve().parents[1]
RIVAL = ROOT / "benchmarks/fsdp2_rival.py"
WORK = ROOT / "runs/bench"
RESULTS = ROOT / "benchmarks/results"
SEED = 1234
# At 1e-3 the loss jumps after some 20 steps, which carries the two sides' rounding beyond what they are compared with.
OPTIMIZER = {"lr": 3.0e-4, "weight_decay": 0.1, "grad_clip": 1.0}  # beta 0.9 and 0.95, eps 1e-8
WARMUP_STEPS = 20  # of the learning rate, or as many as there are

SHAPES = {
    "tiny": dict(vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2),
    "quickstart": dict(vocab_size=2048, hidden_size=256, intermediate_size=384, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4),
    "small": dict(vocab_size=8192, hidden_size=512, intermediate_size=1792, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2),
    "wide": dict(vocab_size=8192, hidden_size=1024, intermediate_size=3584, num_hidden_layers=4, num_attention_heads=16, num_key_value_heads=4),
    # Many small experts, in the proportions of OLMoE-1B-7B (16 heads without sharing) and Qwen3-30B-A3B (8 heads share keys).
    "olmoe": dict(family="olmoe", experts=64, choices=8, vocab_size=8192, hidden_size=512, intermediate_size=256, num_hidden_layers=4,
                  num_attention_heads=8, num_key_value_heads=8),
    "qwen3_moe": dict(family="qwen3_moe", experts=128, choices=8, vocab_size=8192, hidden_size=512, intermediate_size=256, num_hidden_layers=4,
                      num_attention_heads=8, num_key_value_heads=1),
}


class BenchmarkError(RuntimeError):
    """A run did not do what it must; the message says what was seen."""


def experts_of(shape: dict, experts: int | None, choices: int | None) -> tuple[int, int]:
    """What was asked for, else what the shape has of its own, else 8 and 2."""
    return experts or shape.get("experts", 8), choices or shape.get("choices", 2)


def model_config(shape: dict, experts: int, choices: int) -> dict:
    """A config.json of the shape's family."""
    family = shape.get("family", "mixtral")
    sizes = {key: value for key, value in shape.items() if key not in ("family", "experts", "choices")}
    of_family = {
        "mixtral": lambda: {"architectures": ["MixtralForCausalLM"], "num_local_experts": experts, "router_jitter_noise": 0.0},
        "olmoe": lambda: {"architectures": ["OlmoeForCausalLM"], "num_experts": experts, "norm_topk_prob": False, "clip_qkv": None, "attention_bias": False,
                          "pad_token_id": None},  # else Transformers gives token 1, which is text here, no gradient
        "qwen3_moe": lambda: {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": experts, "norm_topk_prob": True, "attention_bias": False,
                              "moe_intermediate_size": shape["intermediate_size"], "decoder_sparse_step": 1, "mlp_only_layers": []},
    }[family]()
    return {"model_type": family, "hidden_act": "silu", "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "initializer_range": 0.02, "tie_word_embeddings": False, "sliding_window": None,
            "attention_dropout": 0.0, "num_experts_per_tok": choices, "output_router_logits": False,
            "router_aux_loss_coef": 0.02, "bos_token_id": 0, "eos_token_id": 0, "use_cache": False,
            "head_dim": shape["hidden_size"] // shape["num_attention_heads"], **of_family, **sizes}


def _check(command: list, exit_code: int, log: Path) -> None:
    if exit_code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise BenchmarkError(f"`{' '.join(map(str, command))}` ended with exit code {exit_code}:\n{tail}")


def run(command: list, log: Path, environment: dict | None = None, seconds: float | None = None) -> None:
    """Run a command in the root of the checkout with one thread a process; what it prints goes to `log`. It is ended after `seconds`."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1", **(environment or {})}
    with open(log, "w") as out:
        try:
            done = subprocess.run([str(word) for word in command], cwd=ROOT, env=variables, stdout=out, stderr=subprocess.STDOUT, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"`{' '.join(map(str, command))}` took more than {seconds:g} s") from None
    _check(command, done.returncode, log)


def run_on_two_hosts(command: list, rate: str, log: Path, environment: dict | None = None) -> None:
    """The same as two ranks, one on each of two hosts whose link is held to `rate`."""
    with open(log, "w") as out, two_hosts(rate):
        ranks = start_two_ranks(command, True, {"PYTHONPATH": str(ROOT / "python"), **(environment or {})}, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        codes = [rank.wait() for rank in ranks]
    _check(command, max(codes, key=abs), log)


class Setting:
    """A shape with its files: config.json, checkpoint and token files, made when they are not there."""

    def __init__(self, name: str, shape: dict, options: argparse.Namespace):
        self.folder = WORK / f"{name}-e{options.experts}-k{options.choices}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "config.json"
        self.checkpoint = self.folder / "checkpoint"
        self.vocabulary = shape["vocab_size"]
        self.data = WORK / f"data/stdlib-{self.vocabulary}"
        self.prepare(model_config(shape, options.experts, options.choices))

    def prepare(self, config: dict) -> None:
        log = self.folder / "prepare.log"
        text = json.dumps(config, indent=2) + "\n"
        made = self.folder / "checkpoint.made"  # the configuration it was made for
        self.config.write_text(text)
        if not made.exists() or made.read_text() != text:
            run([sys.executable, RIVAL, "--make-checkpoint", "--config", self.config, "--checkpoint", self.checkpoint, "--seed", SEED], log)
            made.write_text(text)
        tokenizer = WORK / f"tokenizer-{self.vocabulary}/tokenizer.json"
        if not tokenizer.exists():
            run([sys.executable, "-m", "conclave.data", "train-tokenizer", "stdlib", "--vocab-size", self.vocabulary, "--output", tokenizer, "--overwrite"], log)
        if not Path(f"{self.data}.idx").exists():
            self.data.parent.mkdir(parents=True, exist_ok=True)
            run([sys.executable, "-m", "conclave.data", "build", "stdlib", "--tokenizer", tokenizer, "--output", self.data, "--overwrite"], log)


def footprint_setting(options: argparse.Namespace) -> Setting:
    """Next to nothing to train: what a process takes then is programs, libraries, threads, connections."""
    return Setting("footprint", {**SHAPES["tiny"], "num_hidden_layers": 1}, options)


def find_program() -> Path:
    program = Path(os.environ.get("CONCLAVE_PROGRAM", ROOT / "build/conclave"))
    if not program.exists():
        raise BenchmarkError(f"{program} does not exist. Build it: ./dev build")
    return program


def confine_to_cores(world: int) -> None:
    """A core a rank where there are that many: then both sides run one thread a rank."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:world])


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run_conclave(program: Path, setting: Setting, options: argparse.Namespace, batch: int, sequence: int, steps: int,
                 keys: dict | None = None) -> list[dict]:
    """The lines of metrics.jsonl: one a step. `keys`: more of the job, {"section.key": value}."""
    output = setting.folder / "conclave"
    expert_degree = math.gcd(options.world, options.experts)
    job = {
        "run": {"name": "bench", "output_dir": str(output), "steps": steps, "seed": SEED, "device": "cpu"},
        "model": {"config": str(setting.config), "init_from": str(setting.checkpoint)},
        "data": {"train": str(setting.data), "sequence_length": sequence, "micro_batch_size": batch},
        "parallel": {"expert_parallel_degree": expert_degree},
        # An expert that is lent travels with its gradient: more than a slow link carries in the time it saves.
        "moe": {"overload": "none"} if options.rate else {"overload": "spill", "spill_threshold": 1.05},
        "precision": {"compute": options.precision, "reduce": "fp32", "router": "compute"},  # as the rival
        "optimizer": {**OPTIMIZER, "lr": options.lr, "beta1": 0.9, "beta2": 0.95, "eps": 1.0e-8},
        "schedule": {"kind": "constant", "warmup_steps": min(WARMUP_STEPS, steps)},
        "checkpoint": {"every_minutes": 0, "resume": "never"},
        "metrics": {"tensorboard": False},
    }
    job_file = setting.folder / "job.yaml"
    job_file.write_text(yaml.safe_dump(job, sort_keys=False))
    (output / "metrics.jsonl").unlink(missing_ok=True)
    overrides = [word for key, value in (keys or {}).items() for word in ("--set", f"{key}={value}")]
    log = setting.folder / "conclave.log"
    if options.rate:
        run_on_two_hosts([program, "train", job_file, *overrides], options.rate, log)
    else:
        run([program, "train", job_file, "--ranks", options.world, *overrides], log)
    return read_lines(output / "metrics.jsonl")


def run_rival(tcmalloc: Path | None, setting: Setting, options: argparse.Namespace, batch: int, sequence: int, steps: int,
              recompute: bool = False, expert_degree: int = 0, accelerate: bool = False, seconds: float | None = None, more: dict | None = None) -> list[dict]:
    """`expert_degree`: the same script with conclave.transform; 0: plain Transformers. It is ended after `seconds`. `more`: of its options."""
    output = setting.folder / "rival.jsonl"
    output.unlink(missing_ok=True)
    environment = {"LD_PRELOAD": str(tcmalloc), "THP_MEM_ALLOC_ENABLE": "1"} if tcmalloc else {}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", options.world, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    if options.world == 1:  # a launcher would only take its seconds, and leave its rank behind when it is ended
        launcher = [sys.executable]
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    arguments = {"config": setting.config, "data": setting.data, "output": output, "batch": batch, "sequence": sequence, "steps": steps, "seed": SEED,
                 "precision": options.precision, "experts": options.rival_experts, "lr": options.lr, "warmup-steps": min(WARMUP_STEPS, steps),
                 "weight-decay": OPTIMIZER["weight_decay"], "grad-clip": OPTIMIZER["grad_clip"], "expert-degree": expert_degree, **(more or {})}
    if setting.checkpoint:
        arguments["checkpoint"] = setting.checkpoint
    words = [word for key, value in arguments.items() for word in (f"--{key}", value)]
    words += ["--recompute"] * recompute + ["--accelerate"] * accelerate
    log = setting.folder / "rival.log"
    if options.rate:
        run_on_two_hosts([sys.executable, RIVAL, *words], options.rate, log, environment)
    else:
        run([*launcher, RIVAL, *words], log, environment, seconds)
    return read_lines(output)


def find_tcmalloc(wanted: str) -> Path | None:
    """The tcmalloc to preload for the rival; None: the C library's allocator."""
    if wanted == "none":
        return None
    if wanted != "auto":
        if not Path(wanted).is_file():
            raise BenchmarkError(f"--tcmalloc {wanted}: no such file. Give the path of libtcmalloc_minimal.so.4, auto or none.")
        return Path(wanted).resolve()
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"):
        for name in ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4"):
            if (Path(folder) / name).exists():
                return Path(folder) / name
    return None


def processor_name() -> str:
    """With family and model, for on virtual machines processors of several generations have one name."""
    values = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]))
    if "model name" not in values:
        return platform.processor()
    return f"{values['model name']}, family {values['cpu family']} model {values['model']}"


def summary_of(values: list[float]) -> dict:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def exit_code_of(measure: Callable[[argparse.Namespace], int | None], options: argparse.Namespace) -> int:
    """Runs a benchmark: 0, or 1 with what was seen when a run did not do what it must."""
    try:
        return measure(options) or 0
    except (BenchmarkError, HostsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

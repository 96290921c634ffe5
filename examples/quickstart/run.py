"""The quickstart: text to tokens, a small Mixtral trained on 2 ranks, its validation loss, a sample, and an export that Transformers loads.

`./dev quickstart` sets up, builds and runs this. Each stage prints the command it runs, so that one can go on by hand from any of them, and each
starts from what a run before it left in runs/quickstart.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import check_export
import yaml

ROOT = Path(__file__).resolve().parents[2]
JOB = "examples/quickstart/job.yaml"
RUNS = "runs/quickstart"
TOKENIZER = f"{RUNS}/tokenizer"
DATA = f"{RUNS}/data/stdlib"
TRAINING = f"{RUNS}/training"
EXPORT = f"{RUNS}/export"
VOCABULARY = 512  # that of examples/quickstart/model/config.json
PROMPT = "def "


class StageError(RuntimeError):
    """A stage did not do what it must; the message says what was seen."""


NEXT = f"""
Next:
  look at the run         build/conclave report {TRAINING}
  let it write            build/conclave generate {TRAINING} --tokenizer {TOKENIZER} --prompt "{PROMPT}"
  make it answer          .venv/bin/python examples/finetune/run.py
  bring your own text     build/conclave data build TEXT --tokenizer {TOKENIZER}/tokenizer.json --output runs/mine/data --validation-fraction 0.05
  write a job for it      build/conclave init --data runs/mine/data --output runs/mine/job.yaml
  plan a large one        build/conclave plan examples/mixtral-8x7b.yaml --world 64 --device h100-80
  start from a model      --set model.init_from=FOLDER, a Hugging Face checkpoint (docs/hugging_face.md)
All of it step by step: docs/quickstart.md"""


def announce(title: str) -> None:
    print(f"\n-- {title}", flush=True)


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Takes the time of a stage."""
    begin = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begin


def run(*command: str, capture: bool = False) -> str:
    """Run a command in the root of the checkout, shown as one would type it; return what it printed, if captured."""
    shown = shlex.join(command).replace(sys.executable, "python")
    print(f"$ {shown}", flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE if capture else None, text=True)
    if done.returncode != 0:
        raise StageError(f"`{shown}` ended with exit code {done.returncode}")
    return done.stdout or ""


def make_tokenizer() -> None:
    announce("Tokenizer: byte-level BPE, trained on the sources of Python's standard library")
    if (ROOT / TOKENIZER / "tokenizer.json").exists():
        print(f"already there: {TOKENIZER}")
        return
    run(sys.executable, "-m", "conclave.data", "train-tokenizer", "stdlib", "--vocab-size", str(VOCABULARY), "--output", f"{TOKENIZER}/tokenizer.json",
        "--overwrite")


def make_data() -> None:
    announce("Data: the same sources as token files, the last 5 % of the documents held back for validation")
    files = [f"{DATA}-{part}.{kind}" for part in ("train", "validation") for kind in ("bin", "idx")]
    if all((ROOT / file).exists() for file in files):
        print(f"already there: {', '.join(files)}")
        return
    run(sys.executable, "-m", "conclave.data", "build", "stdlib", "--tokenizer", f"{TOKENIZER}/tokenizer.json", "--output", DATA,
        "--validation-fraction", "0.05", "--overwrite")


def train(overrides: list[str]) -> None:
    announce("Training: 2 ranks, expert degree 2, sharded over both")
    checkpoints = sorted((ROOT / TRAINING / "checkpoints").glob("step-*"))
    if checkpoints:
        print(f"goes on from {checkpoints[-1].relative_to(ROOT)} (remove {TRAINING} to start over)")
    run("build/conclave", "train", JOB, "--ranks", "2", *overrides)


def evaluate(overrides: list[str]) -> dict:
    """The losses over the whole validation set, in nats per token."""
    announce("Validation: the model against counting tokens (unigram) and pairs of tokens (bigram)")
    losses = json.loads(run("build/conclave", "eval", JOB, "--ranks", "2", "--json", *overrides, capture=True))
    print(f"  unigram cross-entropy  {losses['unigram_cross_entropy']:.4f} nats per token")
    print(f"  bigram cross-entropy   {losses['bigram_cross_entropy']:.4f}")
    print(f"  validation loss        {losses['validation_loss']:.4f}")
    if losses["validation_loss"] >= losses["bigram_cross_entropy"]:
        raise StageError("the model does not beat the bigram cross-entropy")
    return losses


def write_sample() -> None:
    announce("A text: the newest checkpoint goes on from a prompt; the same text each time")
    run("build/conclave", "generate", TRAINING, "--tokenizer", TOKENIZER, "--ranks", "2", "--prompt", PROMPT, "--max-new-tokens", "120",
        "--temperature", "0.7", "--top-k", "40")


def export() -> None:
    announce("Export: the newest checkpoint as a Hugging Face folder")
    run("build/conclave", "ckpt", "export", TRAINING, EXPORT, "--tokenizer", TOKENIZER, "--overwrite")


def check(validation_loss: float) -> None:
    announce("Transformers loads the export and computes the same loss")
    resolved_job = yaml.safe_load((ROOT / TRAINING / "job.yaml").read_text())
    model = check_export.load(ROOT / EXPORT)
    loss = check_export.validation_loss(model, ROOT / f"{DATA}-validation", resolved_job["data"]["sequence_length"])
    difference = abs(loss - validation_loss) / loss
    print(f"  Conclave      {validation_loss:.7f}")
    print(f"  Transformers  {loss:.7f}   relative difference {difference:.1e}")
    if difference > check_export.TOLERANCE:
        raise StageError(f"the relative difference is above {check_export.TOLERANCE:.0e}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a key of the job, for example run.steps=50")
    overrides = [part for value in parser.parse_args().set for part in ("--set", value)]
    seconds: dict[str, float] = {}
    try:
        with stage("tokenizer", seconds):
            make_tokenizer()
        with stage("data", seconds):
            make_data()
        with stage("training", seconds):
            train(overrides)
        with stage("validation", seconds):
            losses = evaluate(overrides)
        with stage("sample", seconds):
            write_sample()
        with stage("export", seconds):
            export()
        with stage("check", seconds):
            check(losses["validation_loss"])
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\nquickstart: " + ", ".join(f"{name} {taken:.0f} s" for name, taken in seconds.items()))
    print(f"The run: {TRAINING}. The model for Transformers: {EXPORT}.")
    print(NEXT)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""From twenty chats to a model that answers in their manner: tokens, an adapter trained on 2 ranks, PEFT's folder, the merged model, and an answer.

    .venv/bin/python examples/finetune/run.py

It begins with the model that `./dev quickstart` leaves in runs/quickstart/export; --base gives another one of the same kind.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = "examples/finetune"
QUESTION = "How do I boil an egg?"


def run(*command: str) -> None:
    """Run a command in the root of the checkout, shown as one would type it."""
    shown = shlex.join(command)
    print(f"$ {shown}", flush=True)
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise SystemExit(f"error: `{shown}` failed")


def losses(output: Path) -> list[float]:
    return [json.loads(line)["lm_loss"] for line in (ROOT / output / "training/metrics.jsonl").read_text().splitlines()]


def answer(model_folder: Path, question: str) -> str:
    """What the merged model says, greedily."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(ROOT / model_folder), AutoModelForCausalLM.from_pretrained(ROOT / model_folder)
    template = (ROOT / HERE / "chat_template.jinja").read_text().strip()
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}], chat_template=template, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    said = model.generate(prompt, attention_mask=prompt.new_ones(prompt.shape), max_new_tokens=48, do_sample=False, pad_token_id=0)
    return tokenizer.decode(said[0, prompt.shape[1] :]).split("\n")[0].strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="runs/quickstart/export", help="the model's folder, with its tokenizer")
    parser.add_argument("--output", default="runs/finetune", help="where everything is written")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a key of the job")
    options = parser.parse_args()
    base, output = options.base, Path(options.output)
    if not (ROOT / base / "config.json").exists():
        print(f"error: there is no model in {base}. Run ./dev quickstart first, or give --base.", file=sys.stderr)
        return 2
    run("build/conclave", "data", "build", f"{HERE}/chats.jsonl", "--chats", "--chat-template", f"{HERE}/chat_template.jinja",
        "--tokenizer", base, "--output", str(output / "chats"), "--overwrite")
    keys = [f"run.output_dir={output / 'training'}", f"model.config={base}", f"model.init_from={base}", f"data.train={output / 'chats'}", *options.set]
    run("build/conclave", "train", f"{HERE}/job.yaml", "--ranks", "2", *(part for key in keys for part in ("--set", key)))
    run("build/conclave", "ckpt", "export", str(output / "training"), str(output / "adapter"), "--overwrite")
    run("build/conclave", "ckpt", "merge", str(output / "adapter"), str(output / "merged"), "--base", base, "--overwrite")
    first, *_, last = losses(output)
    print(f"\nloss on what the assistant says: {first:.3f} at first, {last:.3f} in the end")
    print(f"the adapter: {output / 'adapter'}; the model with it: {output / 'merged'}")
    print(f"User: {QUESTION}\nAssistant: {answer(output / 'merged', QUESTION)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`conclave.trainer_of` gives a Trainer's derived classes what conclave.Trainer has; `MetricsCallback` writes what `conclave report` draws.

Oracle: the stock classes in one process. SFTTrainer is TRL's where it is installed, besides a class of its shape: it prepares the data set, takes a
config of its own, and adds to the loss. Tolerance: 1e-4 of the loss, as in test_trainer.py.
"""

import importlib.util
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from test_trainer import SAMPLES, STEPS, Tokens, arguments_for
from tiny_models import tiny_model
from torch_ranks import run_torch_ranks

import conclave
from conclave.job import run_program


@dataclass
class SftConfig(transformers.TrainingArguments):
    shift: int = 0
    entropy_weight: float = 0.0


class SftTrainer(transformers.Trainer):
    """Of TRL's shape."""

    def __init__(self, model=None, args=None, train_dataset=None, **options):
        prepared = [{**train_dataset[number], "labels": train_dataset[number]["labels"].roll(args.shift)} for number in range(len(train_dataset))]
        super().__init__(model=model, args=args, train_dataset=prepared, **options)
        self.accuracies = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        with torch.no_grad():
            self.accuracies.append((outputs.logits[:, :-1].argmax(-1) == inputs["labels"][:, 1:]).float().mean().item())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, start_time=None):
        if self.accuracies and "loss" in logs:
            logs = {**logs, "accuracy": self.accuracies.pop()}
        super().log(logs, start_time)


def settings(folder, batch: int) -> SftConfig:
    given = arguments_for(folder, batch)
    wanted = {name: getattr(given, name) for name in ("output_dir", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate",
              "adam_epsilon", "gradient_accumulation_steps", "max_grad_norm", "weight_decay", "logging_steps", "save_steps", "eval_steps", "seed")}
    return SftConfig(**wanted, eval_strategy="steps", report_to=[], use_cpu=True, disable_tqdm=True, shift=1)


def stock(folder: str, world: int) -> list[dict]:
    trainer = SftTrainer(model=tiny_model("mixtral"), args=settings(f"{folder}/stock", 2 * world), train_dataset=Tokens(SAMPLES), eval_dataset=Tokens(16))
    trainer.train()
    return trainer.state.log_history


def derived(folder: str) -> list[dict]:
    with pytest.raises(conclave.UnsupportedError, match="not derived from transformers.Trainer"):
        conclave.trainer_of(dict)

    class OwnLoop(transformers.Trainer):
        def _inner_training_loop(self, *arguments, **options):
            return None

    with pytest.raises(conclave.UnsupportedError, match="OwnLoop has a _inner_training_loop of its own"):
        conclave.trainer_of(OwnLoop)
    assert conclave.trainer_of(conclave.Trainer) is conclave.Trainer
    kind = conclave.trainer_of(SftTrainer)
    assert kind is conclave.trainer_of(SftTrainer) and kind.__name__ == "SftTrainer" and issubclass(kind, SftTrainer)
    conclave.init({"expert_parallel_degree": 2})
    with pytest.raises(conclave.UnsupportedError, match="the name of a model"):
        kind(model="mistralai/Mixtral-8x7B-v0.1", args=settings(folder, 2), train_dataset=Tokens(SAMPLES))
    with pytest.raises(conclave.OrderError, match="transformed model"):
        kind(model=tiny_model("mixtral"), args=settings(folder, 2), train_dataset=Tokens(SAMPLES))
    model = conclave.transform(tiny_model("mixtral"))
    conclave.fully_shard(model)
    trainer = kind(model=model, args=settings(f"{folder}/derived", 2), train_dataset=Tokens(SAMPLES), eval_dataset=Tokens(16),
                   callbacks=[conclave.MetricsCallback()])
    trainer.train()
    return trainer.state.log_history


def test_a_derived_class_trains_as_its_stock_form_and_is_reported():
    with tempfile.TemporaryDirectory() as folder:
        plain = run_torch_ranks(1, stock, folder, 2)[0]
        found = run_torch_ranks(2, derived, folder)[0]
        for name in ("loss", "grad_norm", "eval_loss"):
            right = [line[name] for line in plain if name in line]
            assert [line[name] for line in found if name in line] == pytest.approx(right, rel=1e-4), name
        assert len([line for line in found if "accuracy" in line]) == STEPS
        check_report(Path(folder) / "derived", [line["loss"] for line in found if "loss" in line])


def check_report(folder: Path, losses: list[float]) -> None:
    metrics = conclave.read_metrics(folder)
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in metrics] == losses and metrics[0]["ranks"] == 2 and metrics[-1]["validation_loss"] > 0
    assert {"expert_imbalance", "expert_share_by_layer", "load_entropy", "router_confidence_by_layer", "aux_loss_by_layer", "dead_experts", "lr",
            "grad_norm"} <= set(metrics[0])
    run_program(["report", folder, "--output", folder / "page.html"])
    page = (folder / "page.html").read_text()
    for picture in ("Load of each expert", "Imbalance by layer", "Router", "Gradient norm"):
        assert picture in page, picture


def log_by_hand(folder: str) -> None:
    """A log of one's own: a resumed one is cut, what is not finite is written as the program writes it, a folder that cannot be written is refused by all."""
    conclave.init({})
    model = conclave.transform(tiny_model("mixtral"))
    tokens = Tokens(2)[0]["input_ids"][None]
    for resumed, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        log = conclave.MetricsLog(model, folder, resumed_step=resumed, steps=4)
        for step in steps:
            model(input_ids=tokens)
            log.write(step, loss=float("nan") if step == 4 else torch.tensor(2.5), grad_norm=1.0, tokens=24)
    with pytest.raises(conclave.CheckpointError, match="cannot be written"):
        conclave.MetricsLog(model, "/proc/nowhere")


def test_a_log_by_hand():
    with tempfile.TemporaryDirectory() as folder:
        run_torch_ranks(2, log_by_hand, folder)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4] and [line["tokens"] for line in lines] == [24, 48, 72, 96]
        assert lines[3]["loss"] == "NaN" and lines[2]["started_after"] == 2 and "started_after" not in lines[1]


def sft(folder: str, world: int, divided: bool) -> list[dict]:
    import trl
    from datasets import Dataset

    model = tiny_model("mixtral")
    kind = trl.SFTTrainer
    if divided:
        conclave.init({"expert_parallel_degree": 2})
        conclave.transform(model)
        kind = conclave.trainer_of(kind)
    data = Dataset.from_dict({"input_ids": [Tokens(SAMPLES)[number]["input_ids"].tolist() for number in range(SAMPLES)]})
    given = arguments_for(folder, 2 * world)
    args = trl.SFTConfig(output_dir=folder, max_steps=3, per_device_train_batch_size=2 * world, learning_rate=2e-3, adam_epsilon=1e-5, logging_steps=1,
                         gradient_accumulation_steps=2, max_grad_norm=0.5, report_to=[], use_cpu=True, disable_tqdm=True, seed=given.seed, bf16=False,
                         gradient_checkpointing=False, eos_token="1", pad_token="0", router_aux_loss_coef=0.0)
    tokenizer = _tokenizer()
    trainer = kind(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    return trainer.state.log_history


def _tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({str(number): number for number in range(64)}, unk_token="0"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="1", pad_token="0", unk_token="0")


@pytest.mark.skipif(not (importlib.util.find_spec("trl") and importlib.util.find_spec("datasets")), reason="TRL is not installed")
def test_sft_trainer_of_trl():
    with tempfile.TemporaryDirectory() as folder:
        plain = run_torch_ranks(1, sft, folder, 2, False)[0]
        found = run_torch_ranks(2, sft, folder, 1, True)[0]
        for name in ("loss", "grad_norm"):
            assert [line[name] for line in found if name in line] == pytest.approx([line[name] for line in plain if name in line], rel=1e-4), name

"""Options of conclave.Trainer: what the stock Trainer can do works as it does there, or is refused by name.

Oracle: the stock Trainer in one process with the batch of all ranks. Tolerance: 1e-4, as in test_trainer.py.
"""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers
from test_trainer import Tokens, arguments_for, logs_of
from tiny_models import tiny_model
from torch_ranks import run_torch_ranks

import conclave


class Stream(torch.utils.data.IterableDataset):
    """Samples of 3 to 12 tokens, of no known number."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self):
        random = torch.Generator().manual_seed(6)
        for _ in range(self._count):
            length = int(torch.randint(3, 13, (), generator=random))
            tokens = torch.randint(0, 64, (length,), generator=random)
            yield {"input_ids": tokens, "labels": tokens}


def padded(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """To the longest of these samples: each rank's batch is of another length."""
    longest = max(len(sample["input_ids"]) for sample in samples)

    def fill(key: str, value: int) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(sample[key], (0, longest - len(sample[key])), value=value) for sample in samples])

    ids = fill("input_ids", 0)
    lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
    return {"input_ids": ids, "labels": fill("labels", -100), "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}


def streamed(trainer_class, model, folder: str, batch: int, count: int, resume=None) -> list[dict]:
    trainer = trainer_class(model=model, args=arguments_for(folder, batch), train_dataset=Stream(count), eval_dataset=Stream(10), data_collator=padded)
    return logs_of(trainer, resume)


def stock_stream(folder: str) -> list[list[dict]]:
    return [streamed(transformers.Trainer, tiny_model("mixtral"), f"{folder}/stock-{count}", 4, count) for count in (64, 16)]


def streams(folder: str) -> list[list[dict]]:
    """A long stream, one that ends and begins anew, one that goes on from a checkpoint, and one that ends within a batch, which early samples fill up."""
    logs = []
    for sharded, count, resume in ((True, 64, None), (False, 16, None), (True, 64, f"{folder}/0/checkpoint-3"), (False, 13, None)):
        conclave.init({"expert_parallel_degree": 2})
        model = conclave.transform(tiny_model("mixtral"))
        if sharded:
            conclave.fully_shard(model)
        logs.append(streamed(conclave.Trainer, model, f"{folder}/{len(logs)}", 2, count, resume))
    return logs


@pytest.mark.slow
def test_each_rank_reads_its_part_of_a_stream():
    with tempfile.TemporaryDirectory() as folder:
        ((long, short),) = run_torch_ranks(1, stock_stream, folder)
        *compared, uneven = run_torch_ranks(2, streams, folder)[0]
        assert [line["step"] for line in uneven] == [line["step"] for line in short]
        for logs, right in zip(compared, (long, short, long), strict=True):
            assert [line["step"] for line in logs] == [line["step"] for line in right]
            for line, expected in zip(logs, right, strict=True):
                for key in {"loss", "grad_norm"} & set(expected):
                    assert line[key] == pytest.approx(expected[key], rel=1e-4), f"step {line['step']}: {key}"


def best_model(trainer_class, model, folder: str, batch: int):
    args = arguments_for(folder, batch, save_steps=2, eval_steps=2, load_best_model_at_end=True, save_total_limit=1, learning_rate=0.1, max_steps=8,
                         lr_scheduler_type="constant")
    trainer = trainer_class(model=model, args=args, train_dataset=Tokens(128), eval_dataset=Tokens(16))
    trainer.train()
    checkpoints = sorted(path.name for path in Path(folder).glob("checkpoint-*"))
    return trainer.state.best_model_checkpoint.rpartition("/")[2], checkpoints, trainer.state.best_metric, trainer.evaluate()["eval_loss"]


def stock_best(folder: str):
    return best_model(transformers.Trainer, tiny_model("mixtral"), f"{folder}/stock", 4)


def best_and_optimizers(folder: str):
    conclave.init({"expert_parallel_degree": 2})
    result = best_model(conclave.Trainer, conclave.fully_shard(conclave.transform(tiny_model("mixtral"))), f"{folder}/best", 2)
    model = conclave.transform(tiny_model("mixtral"))
    for optimizer in ("adafactor", "galore_adamw", "lomo", "adamw_bnb_8bit", "schedule_free_adamw"):
        with pytest.raises(conclave.UnsupportedError, match=f"optim is '{optimizer}'.*Use adamw_torch"):
            conclave.Trainer(model=model, args=arguments_for(folder, 2, optim=optimizer))
    adafactor = transformers.Adafactor(conclave.parameter_groups(model))
    with pytest.raises(conclave.UnsupportedError, match="rows and columns"):
        conclave.Trainer(model=model, args=arguments_for(folder, 2), optimizers=(adafactor, None))
    with pytest.raises(conclave.UnsupportedError, match="use_reentrant"):
        conclave.Trainer(model=model, train_dataset=Tokens(16), args=arguments_for(folder, 2, eval_strategy="no", gradient_checkpointing=True,
                                                                                   gradient_checkpointing_kwargs={"use_reentrant": True})).train()
    return result


def test_the_best_model_is_kept_and_other_optimizers_are_refused():
    with tempfile.TemporaryDirectory() as folder:
        (right,) = run_torch_ranks(1, stock_best, folder)
        result = run_torch_ranks(2, best_and_optimizers, folder)[0]
    assert result[:2] == right[:2] == ("checkpoint-6", ["checkpoint-6"])
    assert result[2] == pytest.approx(right[2], rel=1e-2)  # large steps let rounding grow
    # Not the stock Trainer's: it takes a checkpoint's experts, stored one by one, for surplus, and keeps those of the last step.
    assert result[3] == pytest.approx(result[2], rel=1e-6)


def optimizers(trainer_class, model_of, folder: str, batch: int) -> dict[str, list[dict]]:
    return {name: logs_of(trainer_class(model=model_of(), args=arguments_for(f"{folder}/{batch}-{name}", batch, optim=name, eval_strategy="no"),
                                        train_dataset=Tokens(128))) for name in ("adamw_torch", "sgd", "adagrad", "rmsprop")}


def stock_optimizers(folder: str):
    return optimizers(transformers.Trainer, lambda: tiny_model("mixtral"), folder, 4)


def divided_optimizers(folder: str):
    conclave.init({"expert_parallel_degree": 2})
    return optimizers(conclave.Trainer, lambda: conclave.fully_shard(conclave.transform(tiny_model("mixtral"))), folder, 2)


@pytest.mark.slow
def test_optimizers_step_as_with_the_stock_trainer():
    with tempfile.TemporaryDirectory() as folder:
        (right,) = run_torch_ranks(1, stock_optimizers, folder)
        for name, logs in run_torch_ranks(2, divided_optimizers, folder)[0].items():
            for line, expected in zip(logs, right[name], strict=True):
                if "loss" in expected:
                    assert line["loss"] == pytest.approx(expected["loss"], rel=1e-3), f"{name}, step {line['step']}"

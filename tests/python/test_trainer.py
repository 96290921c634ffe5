"""conclave.Trainer against the stock Trainer in one process: the same data, the same steps.

Tolerance: 1e-4, relative to the loss: fp32 sums in another order over 6 steps of AdamW, whose eps of 1e-5 keeps rounding from becoming steps.
"""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers
from tiny_models import tiny_model
from torch_ranks import run_torch_ranks

import conclave

STEPS, SAMPLES, LENGTH = 6, 128, 12


class Tokens(torch.utils.data.Dataset):
    def __init__(self, count: int) -> None:
        self._tokens = torch.randint(0, 64, (count, LENGTH), generator=torch.Generator().manual_seed(3))

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._tokens[number], "labels": self._tokens[number]}


def arguments_for(folder, batch: int, **changes) -> transformers.TrainingArguments:
    settings = dict(output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=batch, per_device_eval_batch_size=batch, learning_rate=2e-3,
                    adam_epsilon=1e-5, gradient_accumulation_steps=2, max_grad_norm=0.5, weight_decay=0.1, logging_steps=1, save_steps=3,
                    eval_strategy="steps", eval_steps=3, report_to=[], use_cpu=True, disable_tqdm=True, seed=4)
    return transformers.TrainingArguments(**{**settings, **changes})


def logs_of(trainer, resume=None) -> list[dict]:
    trainer.train(resume_from_checkpoint=resume)
    return trainer.state.log_history


def stock(folder: str, world: int) -> list[dict]:
    """One process with the batch of all ranks."""
    return logs_of(transformers.Trainer(model=tiny_model("mixtral"), args=arguments_for(f"{folder}/stock", 2 * world), train_dataset=Tokens(SAMPLES),
                                        eval_dataset=Tokens(16)))


def expert_parallel(folder: str) -> dict[str, list[dict]]:
    check_refusals()
    logs = {}
    for name, degree, sharded, resume in (("plain", 2, False, None), ("sharded", 2, True, None), ("resumed", 1, True, "sharded/checkpoint-3")):
        conclave.init({"expert_parallel_degree": degree})
        model = conclave.transform(tiny_model("mixtral"))
        if sharded:
            conclave.fully_shard(model)
        trainer = conclave.Trainer(model=model, args=arguments_for(Path(folder) / name, 2), train_dataset=Tokens(SAMPLES), eval_dataset=Tokens(16))
        logs[name] = logs_of(trainer, f"{folder}/{resume}" if resume else None)
    return logs


def check_refusals() -> None:
    conclave.init({"expert_parallel_degree": 2})
    model = conclave.transform(tiny_model("mixtral"))
    with pytest.raises(conclave.OrderError, match="conclave.transform"):
        conclave.Trainer(model=tiny_model("mixtral"), args=arguments_for("unused", 2))
    with pytest.raises(conclave.UnsupportedError, match="no model"):
        conclave.Trainer(args=arguments_for("unused", 2))
    with tempfile.TemporaryDirectory() as folder:
        for changes, text in (({"auto_find_batch_size": True}, "auto_find_batch_size"), ({"torch_compile": True}, "torch_compile"),
                              ({"accelerator_config": {"even_batches": False}}, "even_batches")):
            with pytest.raises(conclave.UnsupportedError, match=text):
                conclave.Trainer(model=model, args=arguments_for(folder, 2, **changes))
        trainer = conclave.Trainer(model=model, args=arguments_for(folder, 2, eval_strategy="no"), train_dataset=Tokens(8))
        with pytest.raises(conclave.CheckpointError):
            trainer._load_optimizer_and_scheduler(folder)
    dist.barrier()


@pytest.mark.slow
def test_trains_as_the_stock_trainer():
    with tempfile.TemporaryDirectory() as folder:
        (expected,) = run_torch_ranks(1, stock, folder, 2)
        results = run_torch_ranks(2, expert_parallel, folder)[0]
    for name, logs in results.items():
        assert len(logs) == len(expected), name
        for line, right in zip(logs, expected, strict=True):
            for key in {"loss", "grad_norm", "eval_loss", "learning_rate"} & set(right):
                assert line[key] == pytest.approx(right[key], rel=1e-4), f"{name}, step {line['step']}: {key}"
        assert all("expert_imbalance" in line for line in logs if "loss" in line), name

"""metrics.jsonl of a script's run, by the names that the program writes: `conclave report` draws it, `conclave.read_metrics` reads it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import transformers
import yaml
from torch import nn

from conclave.agreement import together
from conclave.errors import CheckpointError
from conclave.load import DEAD_SHARE, load_metrics, placed_by_layer
from conclave.transformed_model import transformed

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

DEAD_STEPS = 100  # as in docs/balancing.md
LATEST_LOAD = "_conclave_latest_load"  # of a model: what its Trainer's last log told, with the values by layer


class MetricsLog:
    """Writes a line a step. Created and called on all ranks; rank 0 has the files.

    `folder`: of the run; it gets metrics.jsonl and a job.yaml that says what is known of the run. `resumed_step`: lines of later steps are removed; 0: all
    are. `steps`: how many the run will have, if that is known.

    Raises:
        OrderError: the model is not transformed.
        CheckpointError: the folder cannot be written; on all ranks.
    """

    def __init__(self, model: nn.Module, folder: str | PathLike[str], *, resumed_step: int = 0, steps: int | None = None) -> None:
        state = transformed(model, "conclave.MetricsLog")
        self._model = model
        self._file = Path(folder) / "metrics.jsonl"
        self._starved: torch.Tensor | None = None  # [L,E]: for how many steps in a row an expert has got next to nothing
        self._tokens = 0
        self._began = time.monotonic()
        first = next(model.parameters())
        self._start: dict[str, Any] = {"started_after": resumed_step, "ranks": state.mesh.world_size, "device": str(first.device.type),
                                       "compute": str(first.dtype).removeprefix("torch."), "torch_version": torch.__version__}
        moe = {name: value for name, value in vars(state.config).items() if value is not None}
        job = {"run": {"name": Path(folder).name, **({"steps": steps} if steps is not None else {})}, "parallel": {
            "expert_parallel_degree": state.mesh.expert_parallel_degree, "hybrid_shard_degree": state.mesh.hybrid_shard_degree}, "moe": moe}
        self._on_rank_0(lambda: self._prepare(resumed_step, job))

    def write(self, step: int, *, loss: float | torch.Tensor, tokens: int | None = None, load: dict[str, Any] | None = None,
              **values: float | torch.Tensor | None) -> dict[str, Any]:
        """One step: `loss` and whatever else there is, by the names of docs/report.md (`grad_norm`, `lr`, `validation_loss`, `lm_loss`, `aux_loss`, ...).

        `tokens`: that all ranks have trained on in this step. `load`: what `load_metrics` returned for it; None: it is asked for, which is collective.
        Returns the record.
        """
        load = dict(load_metrics(self._model) if load is None else load)
        load.pop("expert_imbalance_max", None)
        self._count_dead(load)
        now = time.monotonic()
        record = {"step": step, **self._start, "loss": loss, "lm_loss": loss, **{name: value for name, value in values.items() if value is not None}, **load}
        if tokens is not None:
            self._tokens += tokens
            record |= {"tokens": self._tokens, "tokens_per_second": tokens / max(now - self._began, 1e-9)}
        self._start, self._began = {}, now
        line = json.dumps({name: _plain(value) for name, value in record.items()}, separators=(",", ":")) + "\n"
        if dist.get_rank() == 0:
            with open(self._file, "a") as file:
                file.write(line)
        return record

    def _count_dead(self, load: dict[str, Any]) -> None:
        """In the program's sense: in each of the last 100 steps."""
        if "expert_share_by_layer" in load:
            share = torch.tensor([row for row in load["expert_share_by_layer"] if row is not None], dtype=torch.float64)
            starved = share < DEAD_SHARE / share.shape[1]
            self._starved = ((self._starved if self._starved is not None else torch.zeros_like(share)) + 1) * starved
            dead = (self._starved >= DEAD_STEPS).sum(1)
            load |= {"dead_experts": int(dead.sum()), "dead_experts_by_layer": placed_by_layer(self._model, dead.double().tolist())}

    def _prepare(self, resumed_step: int, job: dict[str, Any]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if resumed_step and self._file.exists():
            for text in self._file.read_text().splitlines():
                try:
                    record = json.loads(text)
                except ValueError:
                    break  # cut off by the end of the run before
                if record.get("step", resumed_step + 1) > resumed_step:
                    break
                kept.append(text)
                self._tokens = record.get("tokens", self._tokens)
        self._file.write_text("".join(f"{text}\n" for text in kept))
        (self._file.parent / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))

    def _on_rank_0(self, work: Callable[[], None]) -> None:
        def attempt() -> None:
            if dist.get_rank() == 0:
                try:
                    work()
                except OSError as error:
                    raise CheckpointError(f"{self._file.parent} cannot be written: {error.strerror or error}.\nGive another folder.") from None

        together(attempt)


class MetricsCallback(transformers.TrainerCallback):
    """Of conclave.Trainer or of what `conclave.trainer_of` returns: each log becomes a line of `folder`/metrics.jsonl.

    `folder`: None: the Trainer's output_dir.
    """

    def __init__(self, folder: str | PathLike[str] | None = None) -> None:
        self._folder = folder
        self._log: MetricsLog | None = None
        self._newest: dict[str, Any] = {}  # not written yet: an evaluation after the step belongs to it

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module | None = None, **others: Any) -> None:
        self._log = MetricsLog(model, self._folder or args.output_dir, resumed_step=state.global_step, steps=state.max_steps)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None,
               model: nn.Module | None = None, **others: Any) -> None:
        logs = logs or {}
        if "eval_loss" in logs and self._newest.get("step") == state.global_step:
            self._newest["validation_loss"] = logs["eval_loss"]
        if "loss" in logs and self._log is not None:
            self._write()
            self._newest = {"step": state.global_step, "loss": logs["loss"], "grad_norm": logs.get("grad_norm"), "lr": logs.get("learning_rate"),
                            "load": model.__dict__.get(LATEST_LOAD)}

    def on_train_end(self, *arguments: Any, **others: Any) -> None:
        self._write()

    def _write(self) -> None:
        if self._newest:
            self._log.write(**self._newest)
            self._newest = {}


def _plain(value: Any) -> Any:
    """As JSON has it: what is not finite as a word."""
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return [_plain(each) for each in value] if isinstance(value, list) else value

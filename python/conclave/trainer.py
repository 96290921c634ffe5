"""conclave.Trainer: transformers.Trainer over a model whose experts are divided among the ranks."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import transformers
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers.trainer import SCHEDULER_NAME, TRAINING_ARGS_NAME

from conclave.adapters import base_of, check_adapters, check_same_adapters, refuse_bare_layers
from conclave.errors import CheckpointError, UnsupportedError
from conclave.gradients import clip_grad_norm_, synchronize_gradients
from conclave.load import load_metrics
from conclave.metrics_log import LATEST_LOAD
from conclave.pretrained import load_pretrained, save_pretrained
from conclave.state import load_state_dict, state_dict
from conclave.transformed_model import transformed

# What computes each element for itself, so that a part of a parameter is updated as it is in the whole.
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
OPTIMIZER_FOLDER = "optimizer"  # in a checkpoint folder: a checkpoint of torch.distributed.checkpoint


class TrainerMixin:
    """Stands before a Trainer of Transformers, or a class derived from it.

    What differs: Accelerate does not wrap the model (its DistributedDataParallel would average each rank's own experts with others); gradients are
    averaged and clipped across both meshes; logs hold `expert_imbalance`, `expert_imbalance_max` and `dead_experts`; `save_model` and checkpoints
    are written by all ranks, as a Hugging Face folder and a distributed checkpoint of the optimizer beside it, and resume at any expert degree.

    Raises:
        OrderError: the model is not transformed.
        UnsupportedError: an argument that Accelerate cannot honour with experts on an axis of their own; the message says why.
    """

    def __init__(self, model: nn.Module | None = None, args: transformers.TrainingArguments | None = None, **options: Any) -> None:
        if isinstance(model, str):
            raise UnsupportedError(f"{type(self).__name__} was given the name of a model, {model!r}, and would load one that is not transformed.\n"
                                   "Load and transform the model, then give it as `model`.")
        if model is None:
            raise UnsupportedError("conclave.Trainer was given no model, and a model_init would build one that is not transformed.\n"
                                   "Transform the model, then give it as `model`.")
        transformed(model, "conclave.Trainer")
        refuse_bare_layers(model)
        check_adapters(model)
        check_same_adapters(model)
        if args is not None:
            _refuse_arguments(args)
        _refuse_optimizer(options.get("optimizers", (None, None))[0])
        super().__init__(model=model, args=args, **options)
        self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps  # for who takes a step without train()
        self._sharded = any(isinstance(module, FSDPModule) for module in model.modules())

    def create_accelerator_and_postprocess(self) -> None:
        if self.args.accelerator_config.dispatch_batches is None:
            self.args.accelerator_config.dispatch_batches = False  # of a stream, each rank takes its own batches; rank 0 need not send them
        super().create_accelerator_and_postprocess()
        # As for evaluation: device and autocast, but no wrapper around the model.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Fused and foreach optimizers take tensors of one mesh at a time: each group is divided into dense parameters and experts."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            experts = transformed(self.model, "conclave.Trainer").expert_parameters()
            groups = []
            for group in optimizer.param_groups:
                for wanted in (False, True):
                    members = [parameter for parameter in group["params"] if (id(parameter) in experts) == wanted]
                    if members:
                        groups.append({**group, "params": members})
            optimizer.param_groups[:] = groups
        return optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
                     num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The balancing loss is a mean already: what the stock Trainer does to the sum of the tokens' losses (not divided by the micro-steps, times the
        ranks) must not reach it."""
        by_tokens = num_items_in_batch is not None and self.model_accepts_loss_kwargs
        micro_steps = self.current_gradient_accumulation_steps if by_tokens and model.training else 1
        ranks = self.accelerator.num_processes if by_tokens and self.args.average_tokens_across_devices else 1
        base = base_of(self.model)
        # Conclave's own losses are scaled by a factor, Transformers' by its coefficient.
        own = transformed(self.model, "conclave.Trainer").config.has_own_aux_loss
        coefficient = None if own else getattr(base, "router_aux_loss_coef", None)
        base.__dict__["conclave_balancing_factor"] = 1.0 / (micro_steps * ranks)
        smoothed = self.label_smoother is not None and self.compute_loss_func is None and "labels" in inputs
        try:
            if coefficient is not None:
                base.router_aux_loss_coef = coefficient / (micro_steps * ranks)
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        finally:
            if coefficient is not None:
                base.router_aux_loss_coef = coefficient
            base.__dict__.pop("conclave_balancing_factor", None)
        if smoothed:  # the label smoother has computed a loss of its own, without them
            for factor, name in ((1.0, "balancing_loss"), (coefficient, "aux_loss")):
                if factor is not None and outputs.get(name) is not None:
                    loss = loss + factor * outputs[name] / micro_steps
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        loss = super().training_step(*arguments, **options)
        if self.accelerator.sync_gradients and not self._sharded:
            synchronize_gradients(self.model)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        return clip_grad_norm_(self.model, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> float:
        return (clip_grad_norm_(self.model, math.inf) if grad_norm is None else grad_norm).item()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            load = load_metrics(self.model)
            self.model.__dict__[LATEST_LOAD] = load
            logs = {**logs, **{name: value for name, value in load.items() if not isinstance(value, list)}}
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Collective over all ranks, unlike the stock one."""
        folder = Path(output_dir or self.args.output_dir)
        save_pretrained(self.model, folder)
        if self.args.should_save:
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            torch.save(self.args, folder / TRAINING_ARGS_NAME)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_pretrained(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        load_pretrained(self.model, self.state.best_model_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = state_dict(self.model, self._bare_optimizer())
        dcp.save({"optimizer": state["optimizer"]}, checkpoint_id=Path(output_dir) / OPTIMIZER_FOLDER)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint) / OPTIMIZER_FOLDER
        if not folder.is_dir():
            raise CheckpointError(f"{checkpoint} has no folder {OPTIMIZER_FOLDER!r}: it was not saved by conclave.Trainer, or with save_only_model.\n"
                                  "Load its weights with conclave.load_pretrained, and train without resume_from_checkpoint.")
        state = state_dict(self.model, self._bare_optimizer())
        optimizer = {"optimizer": state["optimizer"]}
        dcp.load(optimizer, checkpoint_id=folder)
        load_state_dict(self.model, {"model": state["model"], **optimizer}, self._bare_optimizer())
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)


class Trainer(TrainerMixin, transformers.Trainer):
    """The stock Trainer with a model that `conclave.transform` (and `conclave.fully_shard`, if wanted) has prepared."""


@functools.cache
def trainer_of(base: type[transformers.Trainer]) -> type[transformers.Trainer]:
    """`base`, a class derived from transformers.Trainer such as TRL's SFTTrainer, for models that `conclave.transform` has prepared: what conclave.Trainer
    does differently from the stock one, it does differently from `base`.

    Raises:
        UnsupportedError: no Trainer, or one whose step is not the stock one's.
    """
    if not (isinstance(base, type) and issubclass(base, transformers.Trainer)):
        raise UnsupportedError(f"trainer_of was given {getattr(base, '__name__', base)!r}, which is not derived from transformers.Trainer.\n"
                               "Write the loop around conclave.fully_shard or conclave.synchronize_gradients (docs/python.md).")
    if issubclass(base, TrainerMixin):
        return base
    for name in ("_inner_training_loop", "create_accelerator_and_postprocess", "save_model"):
        if getattr(base, name) is not getattr(transformers.Trainer, name):
            raise UnsupportedError(f"{base.__name__} has a {name} of its own, and what it does to gradients or to weights is not known to suit divided experts.\n"
                                   "Use a Trainer without it, or a loop of your own (docs/python.md).")
    return type(base.__name__, (TrainerMixin, base), {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__})


def _refuse_arguments(args: transformers.TrainingArguments) -> None:
    """Accelerate has no expert axis; what it would do to the model or its gradients on its own is refused."""
    refusals = {
        "fsdp": (args.fsdp, "Accelerate shards every parameter over all ranks. Call conclave.fully_shard(model) before"),
        "deepspeed": (args.deepspeed, "DeepSpeed partitions parameters by itself, on one axis. Call conclave.fully_shard(model) before"),
        "parallelism_config": (getattr(args, "parallelism_config", None), "Accelerate's axes do not know the expert axis. Use conclave.init"),
        "optim": (args.optim not in OPTIMIZERS, f"it is not among those that treat a rank's part of a parameter as they treat the whole. "
                                                f"Use {', '.join(OPTIMIZERS)}"),
        "fp16": (args.fp16, "Accelerate's gradient scaler looks for overflow on one rank at a time. Use bf16"),
        "torch_compile": (args.torch_compile, "FSDP2 and the experts' collectives are not traced. Leave it out"),
        "auto_find_batch_size": (args.auto_find_batch_size, "a rank that is out of memory would try again alone. Give a batch size that fits"),
        "accelerator_config.even_batches": (not args.accelerator_config.even_batches,
                                            "every rank must call the experts equally often. Leave it True"),
        "accelerator_config.dispatch_batches": (args.accelerator_config.dispatch_batches, "rank 0 would send every batch. Leave it out"),
    }
    for name, (given, reason) in refusals.items():
        if given:
            value = getattr(args, name, None) if "." not in name else getattr(args.accelerator_config, name.split(".")[1])
            raise UnsupportedError(f"TrainingArguments.{name} is {getattr(value, 'value', value)!r}, which conclave.Trainer cannot honour: {reason}.")


def _refuse_optimizer(optimizer: torch.optim.Optimizer | None) -> None:
    if "Adafactor" in type(optimizer).__name__:
        raise UnsupportedError(f"optimizers holds {type(optimizer).__name__}, which takes means over rows and columns that no rank has whole.\n"
                               "Use torch.optim.AdamW(conclave.parameter_groups(model), ...).")

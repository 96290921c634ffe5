"""Conclave: pre-trains Mixtral-class mixture-of-experts models with expert parallelism and sharded data parallelism.

For a PyTorch script with a Transformers model (docs/python.md):

    conclave.init({"expert_parallel_degree": 2})
    model = conclave.transform(model, conclave.MoEConfig())
    model = conclave.fully_shard(model)

Every public name is an attribute of this package and is imported when it is first used, so that the parts that need no PyTorch (conclave.data) start
without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conclave import nn
    from conclave.acceleration import Acceleration, accelerate
    from conclave.activation_checkpointing import checkpoint_context
    from conclave.adamw import AdamW
    from conclave.checkpoints import finish_saves, load_checkpoint, save_checkpoint
    from conclave.errors import (
        CheckpointError,
        ConclaveError,
        ConfigError,
        JobError,
        LayoutError,
        NotMaterializedError,
        OrderError,
        ProcessGroupError,
        TorchVersionError,
        UnsupportedError,
        UnsupportedModelError,
    )
    from conclave.gradients import clip_grad_norm_, synchronize_gradients
    from conclave.initialization import check_materialized, materialize
    from conclave.job import Job, Run, plan, read_metrics
    from conclave.load import load_metrics
    from conclave.mesh import Mesh, init
    from conclave.metrics_log import MetricsCallback, MetricsLog
    from conclave.moe_config import MoEConfig
    from conclave.offloading import ActivationOffloading, offload_activations
    from conclave.pretrained import load_pretrained, save_pretrained
    from conclave.sharding import fully_shard, parameter_groups
    from conclave.state import load_state_dict, load_state_dict_from_rank0, state_dict
    from conclave.trainer import Trainer, trainer_of
    from conclave.transformation import transform

_MODULE_OF = {
    "nn": "",
    **dict.fromkeys(["CheckpointError", "ConclaveError", "ConfigError", "JobError", "LayoutError", "NotMaterializedError", "OrderError",
                     "ProcessGroupError", "TorchVersionError", "UnsupportedError", "UnsupportedModelError"], "errors"),
    **dict.fromkeys(["Acceleration", "accelerate"], "acceleration"),
    "checkpoint_context": "activation_checkpointing",
    "AdamW": "adamw",
    **dict.fromkeys(["finish_saves", "load_checkpoint", "save_checkpoint"], "checkpoints"),
    **dict.fromkeys(["clip_grad_norm_", "synchronize_gradients"], "gradients"),
    **dict.fromkeys(["check_materialized", "materialize"], "initialization"),
    **dict.fromkeys(["Job", "Run", "plan", "read_metrics"], "job"),
    **dict.fromkeys(["Mesh", "init"], "mesh"),
    "load_metrics": "load",
    **dict.fromkeys(["MetricsCallback", "MetricsLog"], "metrics_log"),
    "MoEConfig": "moe_config",
    **dict.fromkeys(["ActivationOffloading", "offload_activations"], "offloading"),
    **dict.fromkeys(["load_pretrained", "save_pretrained"], "pretrained"),
    **dict.fromkeys(["fully_shard", "parameter_groups"], "sharding"),
    **dict.fromkeys(["load_state_dict", "load_state_dict_from_rank0", "state_dict"], "state"),
    **dict.fromkeys(["Trainer", "trainer_of"], "trainer"),
    "transform": "transformation",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'conclave' has no attribute {name!r}")
    if not _MODULE_OF[name]:
        return importlib.import_module(f"conclave.{name}")
    value = getattr(importlib.import_module(f"conclave.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

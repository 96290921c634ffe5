"""torch.sagemaker.delayed_param: a model is built on the meta device, and each rank gets memory for its own parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import nn

from conclave.errors import OrderError, UnsupportedError
from conclave.initialization import check_materialized


@contextmanager
def delayed_param_initialization() -> Iterator[None]:
    """What is built inside has no memory and no values yet."""
    with torch.device("meta"):
        yield


class DelayedParamIniter:
    """Its functions tell `FullyShardedDataParallel` to give the model values by `conclave.materialize`: normal with the configuration's
    `initializer_range`, norms 1, biases 0, buffers computed, tied weights tied; the same on every layout.

    Raises:
        UnsupportedError: a function of one's own for initial values.
    """

    def __init__(self, model: nn.Module, init_method_using_config: Callable[..., None] | None = None, verbose: bool = False) -> None:
        if init_method_using_config is not None:
            raise UnsupportedError("init_method_using_config is given, but initial values are a function of seed, name and place, so that they do not depend "
                                   "on the layout.\nLeave it out, or change the values after FullyShardedDataParallel.")
        self._model = model

    def get_param_init_fn(self) -> Callable[[nn.Module], None]:
        return param_init_fn

    def get_post_param_init_fn(self) -> Callable[..., None]:
        return post_param_init_fn

    @contextmanager
    def validate_params_and_buffers_inited(self) -> Iterator[None]:
        """Around FullyShardedDataParallel: at its end no parameter and no buffer may be on the meta device, and none may be lost.

        Raises:
            NotMaterializedError: names those that are.
            OrderError: names those that are gone.
        """
        before = {name for name, _ in self._model.named_parameters()} | {name for name, _ in self._model.named_buffers()}
        yield
        check_materialized(self._model)
        after = {name for name, _ in self._model.named_parameters()} | {name for name, _ in self._model.named_buffers()}
        if lost := sorted(before - after):
            raise OrderError(f"{len(lost)} tensors of the model are gone: {', '.join(lost[:8])}.\nDo not change the model between transform and the end of "
                             "FullyShardedDataParallel.")


def param_init_fn(module: nn.Module) -> NoReturn:
    """Known by FullyShardedDataParallel of conclave.smp.fsdp; not to be called."""
    raise OrderError("the param_init_fn of DelayedParamIniter belongs to conclave.smp.fsdp.\n"
                     "Import it: from conclave.smp.fsdp import FullyShardedDataParallel as FSDP")


def post_param_init_fn(*arguments: object) -> None:
    """Nothing is left to do."""

"""generate() on ranks that need each other's experts (or shards) in every forward pass, and want different numbers of tokens."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

PATIENCE_SECONDS = 30.0  # of a rank that waits for the others' generate(), before it says so


class JoinedGeneration:
    """Before each forward pass of generate() ranks say that they compute one. A rank that has its tokens computes along, one token that nobody reads,
    until nobody goes on. So it does not matter how a rank generates, how often, or whether it fails.

    Transformers' own `synced_gpus` repeats the rank's last step instead, with all its sequences, and not without a cache.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.__dict__.get("_conclave_generates"):
            self._somebody_computes(True)
        return super().__call__(*arguments, **options)

    def generate(self, inputs: Any = None, generation_config: Any = None, logits_processor: Any = None, stopping_criteria: Any = None,
                 prefix_allowed_tokens_fn: Any = None, synced_gpus: bool | None = None, **options: Any) -> Any:
        """As Transformers' own, on every rank. `synced_gpus`: None: ranks go on together where they need each other; False: they do not."""
        arguments = (inputs, generation_config, logits_processor, stopping_criteria, prefix_allowed_tokens_fn)
        if synced_gpus is not None or not self._needs_others() or self.__dict__.get("_conclave_generates"):
            return super().generate(*arguments, bool(synced_gpus), **options)
        self.__dict__["_conclave_generates"] = True
        try:
            return super().generate(*arguments, False, **options)
        finally:
            self.__dict__["_conclave_generates"] = False
            self._compute_along()

    def _needs_others(self) -> bool:
        sharded = any(isinstance(module, FSDPModule) for module in self.modules())
        return dist.get_world_size() > 1 and (sharded or self.conclave.mesh.expert.size() > 1)

    @torch.no_grad()
    def _compute_along(self) -> None:
        token = torch.zeros((1, 1), dtype=torch.long, device=self.conclave.mesh.device_type)
        while self._somebody_computes(False):
            self(input_ids=token, use_cache=False)

    def _somebody_computes(self, this_rank: bool) -> bool:
        computing = torch.tensor(float(this_rank), device=self.conclave.mesh.device_type)
        with _saying_that_it_waits():
            dist.all_reduce(computing)
            return computing.item() > 0


@contextmanager
def _saying_that_it_waits() -> Iterator[None]:
    timer = threading.Timer(PATIENCE_SECONDS, _say_that_it_waits)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say_that_it_waits() -> None:
    warnings.warn(f"generate() on rank {dist.get_rank()} has waited {PATIENCE_SECONDS:.0f} s for the other ranks. Call it on all ranks, and equally often: "
                  "ranks that divide experts or parameters among them compute together.", stacklevel=2)

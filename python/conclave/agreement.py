"""What one rank refuses, all ranks refuse: none waits in a collective for a rank that has raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from conclave import errors
from conclave.errors import ConclaveError

Result = TypeVar("Result")


def together(check: Callable[[], Result]) -> Result:
    """What `check` returns, once it has succeeded on every rank. Collective; `check` itself is not.

    Raises:
        ConclaveError: on every rank: the refusal of the lowest rank that refuses, of its own class. Another exception of `check` is raised as it is on
            its own rank, and as a ConclaveError with its text on the others.
    """
    failure: Exception | None = None
    result = None
    try:
        result = check()
    except Exception as error:
        failure = error
    refusals: list[tuple[str, str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(refusals, None if failure is None else (type(failure).__name__, str(failure)))
    if failure is not None and not isinstance(failure, ConclaveError):
        raise failure
    refused = next((rank for rank, refusal in enumerate(refusals) if refusal is not None), None)
    if refused is None:
        return result
    name, text = refusals[refused]
    everywhere = all(refusal == refusals[refused] for refusal in refusals)
    error = getattr(errors, name, ConclaveError)
    raise error(text if everywhere else f"rank {refused} refused: {text}") from failure

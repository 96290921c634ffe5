"""What the tests against Transformers share."""

import pytest
import torch
from ranks import program


@pytest.fixture(scope="session", autouse=True)
def _program_is_built() -> None:
    if not program().exists():
        pytest.skip(f"{program()} is not built")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The models are too small for more; and sums in one order are the same on every machine."""
    torch.set_num_threads(1)

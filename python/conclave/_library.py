"""Loads the C++ operators, torch.ops.conclave, and finds the program: beside this file in an installed package, else in the build folder of the checkout."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from conclave.errors import ConclaveError, ConfigError, TorchVersionError

TORCH_VERSION = "2.11.0"  # the C++ libraries of other versions have other layouts; cmake/Torch.cmake builds for the same
_PACKAGE = Path(__file__).resolve().parent
Error = TypeVar("Error", bound=ConclaveError)
Result = TypeVar("Result")


def find_built(name: str) -> Path:
    """The built file `name`. Raises ConclaveError if it is nowhere."""
    for folder in (_PACKAGE / "lib", _PACKAGE.parents[1] / "build"):
        if (folder / name).exists():
            return folder / name
    raise ConclaveError(f"{name} is neither in {_PACKAGE / 'lib'} nor in {_PACKAGE.parents[1] / 'build'}.\n"
                        "Build it: ./dev build, or install the wheel that ./dev wheel makes.")


def check_torch_version(installed: str = torch.__version__) -> None:
    """Refuses a torch that the operators were not built for."""
    if installed.split("+")[0] != TORCH_VERSION:
        raise TorchVersionError(f"torch is {installed}, but Conclave is built for torch {TORCH_VERSION}, and C++ libraries fit one version only.\n"
                                f"Install that one: pip install torch=={TORCH_VERSION}")


@functools.cache
def operators() -> torch._ops._OpNamespace:
    """torch.ops.conclave, loaded on the first call."""
    check_torch_version()
    torch.ops.load_library(str(find_built("libconclave_operators.so")))
    return torch.ops.conclave


@functools.cache
def take_cuda_kernels() -> None:
    """To be called where there are CUDA tensors: the operators compute them by the kernels of libconclave_cuda.so, or a warning says, once, why not."""
    if reason := operators().why_no_cuda_kernels():
        warnings.warn(f"Experts on CUDA are computed by PyTorch's operators, many times slower than by Conclave's kernels: {reason}.\n"
                      "Build where nvcc is on the PATH (./dev build, or ./dev wheel), so that libconclave_cuda.so lies "
                      "beside libconclave_operators.so.", RuntimeWarning, stacklevel=3)


def call_checked(operator: Callable[..., Result], *arguments: object, error: type[ConclaveError] = ConfigError) -> Result:
    """Calls an operator that refuses mistakes of its caller: they become `error`, with the engine's own words."""
    try:
        return operator(*arguments)
    except RuntimeError as refusal:
        raise error(re.sub(r" +\(--set [^)]*\)", "", str(refusal))) from None  # keys were given as if by --set

"""Which kernels the operators take for CUDA tensors, and what is said where Conclave's own are not there. What they compute: tests/gpu."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_job import PROGRAM, SmallJob

import conclave.experts
from conclave._library import find_built

OPERATORS = "libconclave_operators.so"
PLUGIN = "libconclave_cuda.so"

REASON = """
import sys, torch
torch.ops.load_library(sys.argv[1])
print(torch.ops.conclave.why_no_cuda_kernels())
"""
WARNING = """
import sys, warnings
from pathlib import Path
from conclave import _library
_library.find_built = lambda name: Path(sys.argv[1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        _library.take_cuda_kernels()
print(*(f"{warning.category.__name__}: {warning.message}" for warning in caught), sep="\\n--\\n")
"""


def output_of(program: str, operators: Path) -> str:
    done = subprocess.run([sys.executable, "-c", program, str(operators)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()


def operators_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return Path(shutil.copy(find_built(OPERATORS), folder))


def copy_plug_in(folder: Path) -> None:
    built = find_built(OPERATORS).with_name(PLUGIN)
    if not built.exists():
        pytest.skip("built without nvcc: there is no plug-in")
    shutil.copy(built, folder)


def test_a_plug_in_beside_the_operators_is_taken(tmp_path):
    """No GPU is needed to load it."""
    operators = operators_in(tmp_path / "lib")
    copy_plug_in(tmp_path / "lib")
    assert output_of(REASON, operators) == ""
    assert output_of(WARNING, operators) == ""


def test_the_program_of_a_wheel_finds_the_plug_in_of_its_operators(tmp_path):
    """In a wheel the program is in bin, and lib beside it has the libraries."""
    job = SmallJob(tmp_path, {"run.device": "cuda"}).write()
    for folder in ("bin", "lib"):
        (tmp_path / folder).mkdir()
    installed = shutil.copy(PROGRAM, tmp_path / "bin")
    said = []
    for _ in range(2):
        done = subprocess.run([installed, "train", job], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=300)
        assert done.returncode == 2
        said.append(done.stderr)
        copy_plug_in(tmp_path / "lib")
    assert "the CUDA half of the program cannot be loaded" in said[0]
    assert "no GPU, or no driver for it, is visible" in said[1]


def test_a_plug_in_that_is_not_there_is_warned_of_once_with_the_remedy(tmp_path):
    operators = operators_in(tmp_path / "lib")
    assert PLUGIN in output_of(REASON, operators)
    said = output_of(WARNING, operators)
    assert said.startswith("RuntimeWarning: Experts on CUDA are computed by PyTorch's operators") and "--" not in said.splitlines()
    assert PLUGIN in said and "nvcc" in said and "./dev build" in said


def test_a_library_of_that_name_which_is_another_is_named(tmp_path):
    operators = operators_in(tmp_path / "lib")
    subprocess.run(["cc", "-shared", "-x", "c", "/dev/null", "-o", tmp_path / "lib" / PLUGIN], check=True)
    assert f"{tmp_path / 'lib' / PLUGIN} is not of this program" in output_of(REASON, operators)


class Asked(Exception):
    pass


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_cuda_tensors_ask_for_the_kernels_and_others_do_not(monkeypatch, device):
    def raise_asked():
        raise Asked

    monkeypatch.setattr(conclave.experts, "take_cuda_kernels", raise_asked)
    hidden = SimpleNamespace(device=SimpleNamespace(type=device), dtype=None)
    with pytest.raises(Asked if device == "cuda" else AttributeError):
        conclave.experts.experts_forward(None, hidden, None, None, None, None)

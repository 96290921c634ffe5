"""`./dev gpu-test` and `./dev gpu-bench` where there is no GPU: they say so, and nothing is built."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("words", ["gpu-test", "gpu-bench", "gpu-bench step"])
def test_without_a_gpu_it_says_so_and_ends_with_2(words):
    command = words.split()[0]
    done = subprocess.run([ROOT / "dev", *words.split()], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: no NVIDIA GPU is visible here, and ./dev {command} needs one.")
    assert done.stdout == ""

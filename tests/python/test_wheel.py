"""The wheel, built from this checkout's build folder and installed in a fresh environment that sees the torch of this one."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLEAN = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}

PROGRAM = """
import conclave, sys
print(conclave.__file__)
print(conclave.MoEConfig())
from conclave._library import find_built, operators
print(find_built("libconclave_operators.so"))
print("kernels for CUDA:", operators().why_no_cuda_kernels() or "there")
"""


def run(*command, fails=False, cwd=None, env=None):
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env or CLEAN, capture_output=True, text=True, timeout=600)
    assert (done.returncode != 0) == fails, f"{command}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_wheel_installs_and_runs(tmp_path):
    # The folder of `./dev build` already has what is built; only its tests would otherwise be configured away.
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, "--config-settings=build-dir=build",
        "--config-settings=cmake.define.CONCLAVE_TESTS=ON", "--config-settings=cmake.define.CONCLAVE_BENCHMARKS=ON", ROOT)
    (wheel,) = tmp_path.glob("conclave-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    has_cuda = (ROOT / "build/libconclave_cuda.so").exists()
    assert {"conclave/py.typed", "conclave/bin/conclave", "conclave/lib/libconclave_operators.so"} <= set(names)
    assert ("conclave/lib/libconclave_cuda.so" in names) == has_cuda
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    (site,) = (tmp_path / "venv/lib").glob("python3*/site-packages")
    (site / "torch_of_this_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "--no-index", "--no-deps", wheel)

    said = run(python, "-c", PROGRAM, cwd=tmp_path)
    assert str(site) in said and "MoEConfig(" in said
    assert ("kernels for CUDA: there" in said) == has_cuda
    assert "pre-train" in run(tmp_path / "venv/bin/conclave", "--help", cwd=tmp_path)
    assert "nowhere.yaml" in run(tmp_path / "venv/bin/conclave", "validate", "nowhere.yaml", cwd=tmp_path, fails=True)

    # Another torch: refused before anything is loaded.
    refused = run(python, "-c", "import torch; torch.__version__ = '2.12.0'\nimport conclave; conclave.MoEConfig()", cwd=tmp_path, fails=True)
    assert "TorchVersionError" in refused and "pip install torch==2.11.0" in refused

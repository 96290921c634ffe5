"""What `./dev wheel` makes: a wheel that a fresh environment, which sees the torch of this one, installs and trains with; and an sdist.

Oracles: pip, which refuses a wheel whose tag does not suit the machine; the loader, which says where each library comes from; git, for what sources there
are.
"""

import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from small_job import SmallJob

ROOT = Path(__file__).resolve().parents[2]
CLEAN = {"PATH": "/usr/local/cuda/bin:/usr/bin:/bin", "HOME": "/nonexistent"}

SCRIPT = """
import conclave, sys
print(conclave.__file__)
print(conclave.MoEConfig())
from conclave._library import find_built, operators
print(find_built("libconclave_operators.so"))
print("kernels for CUDA:", operators().why_no_cuda_kernels() or "there")
"""


def run(*command, fails=False, cwd=None):
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=CLEAN, capture_output=True, text=True, timeout=1800)
    assert (done.returncode != 0) == fails, f"{command}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([ROOT / "dev", "wheel", folder], cwd=ROOT, check=True, timeout=3000)
    (wheel,) = folder.glob("conclave-*.whl")
    (sources,) = folder.glob("conclave-*.tar.gz")
    return wheel, sources


@pytest.fixture(scope="module")
def installed(made, tmp_path_factory):
    """A fresh environment with the wheel, and the folder it runs in."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", folder / "venv")
    (site,) = (folder / "venv/lib").glob("python3*/site-packages")
    (site / "torch_of_this_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(folder / "venv/bin/python", "-m", "pip", "install", "--no-index", "--no-deps", made[0])
    return folder


@pytest.mark.slow
def test_wheel_has_the_program_and_the_operators_and_says_where_it_runs(made):
    names = set(zipfile.ZipFile(made[0]).namelist())
    assert {"conclave/py.typed", "conclave/bin/conclave", "conclave/lib/libconclave_operators.so"} <= names
    assert ("conclave/lib/libconclave_cuda.so" in names) == (ROOT / "build/libconclave_cuda.so").exists()
    assert re.search(r"-py3-none-manylinux_2_\d+_\w+", made[0].name)
    bundled = [name for name in names if name.startswith("conclave.libs/")]
    assert any("libspdlog" in name for name in bundled) and not any(re.search("libtorch|libc10|libcu|libgomp", name) for name in bundled)


@pytest.mark.slow
def test_program_takes_its_libraries_from_the_wheel_and_torch(installed):
    (site,) = (installed / "venv/lib").glob("python3*/site-packages")
    loaded = subprocess.run(["ldd", site / "conclave/bin/conclave"], env={**CLEAN, "LD_LIBRARY_PATH": str(Path(sysconfig.get_path("purelib")) / "torch/lib")},
                            capture_output=True, text=True, check=True).stdout
    places = {name.split("-")[0]: place for name, place in re.findall(r"(lib[\w+-]+)[.\w-]* => (\S+)", loaded)}
    for library in ("libspdlog", "libfmt", "libyaml", "libjemalloc", "libcrypto", "libprotobuf"):
        assert "conclave.libs" in places[library], loaded
    assert "not found" not in loaded


@pytest.mark.slow
def test_package_works_in_a_fresh_environment(installed):
    python = installed / "venv/bin/python"
    said = run(python, "-c", SCRIPT, cwd=installed)
    assert str(installed) in said and "MoEConfig(" in said
    assert ("kernels for CUDA: there" in said) == (ROOT / "build/libconclave_cuda.so").exists()

    # Another torch: refused before anything is loaded.
    refused = run(python, "-c", "import torch; torch.__version__ = '2.12.0'\nimport conclave; conclave.MoEConfig()", cwd=installed, fails=True)
    assert "TorchVersionError" in refused and "pip install torch==2.11.0" in refused


@pytest.mark.slow
def test_program_trains_and_reports_in_a_fresh_environment(installed):
    conclave = installed / "venv/bin/conclave"
    assert "validate" in run(conclave, "--help", cwd=installed)
    assert "nowhere.yaml" in run(conclave, "validate", "nowhere.yaml", cwd=installed, fails=True)
    job = SmallJob(installed, {"parallel.expert_parallel_degree": 2})
    run(conclave, "train", job.write(), "--ranks", 2, cwd=installed)
    assert len(job.metrics()) == 3
    run(conclave, "report", job.output, cwd=installed)
    assert (job.output / "report.html").stat().st_size > 10000
    text = installed / "text"
    text.mkdir()
    (text / "a.txt").write_text("one two three. " * 200)
    run(conclave, "data", "train-tokenizer", text, "--vocab-size", "300", "--output", installed / "tokenizer.json", cwd=installed)
    run(conclave, "data", "build", text, "--tokenizer", installed / "tokenizer.json", "--output", installed / "set", cwd=installed)
    assert json.loads((installed / "tokenizer.json").read_text())["model"]["type"] == "BPE"


@pytest.mark.slow
def test_sdist_has_the_sources_and_nothing_that_is_built(made, tmp_path):
    with tarfile.open(made[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    tracked = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                             check=True).stdout.split()
    packed = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {name for name in tracked if (ROOT / name).is_file()} - packed == set()
    assert packed - set(tracked) == {"PKG-INFO"}
    run("/usr/bin/env", "cmake", "-S", folder, "-B", tmp_path / "configured", "-G", "Ninja", f"-DCONCLAVE_PYTHON={sys.executable}")

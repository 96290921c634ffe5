"""The readers of files from elsewhere under AddressSanitizer: libFuzzer on any bytes for a bounded time, and their unit tests.

Oracle: the sanitizers (no read outside of its bounds, no undefined behaviour), limits on memory, and what the fuzz programs check of every file that
is accepted. `./dev test --all` builds the programs (presets `fuzz` and `asan`). Longer, by hand:

    build-fuzz/fuzz_safetensors -max_total_time=3600 -dict=tests/fuzz/json.dict /tmp/found tests/fuzz/corpus/safetensors
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ROOT / "tests/fuzz/corpus"
SECONDS = 20

pytestmark = pytest.mark.slow


def built(program: Path) -> Path:
    if not program.exists():
        pytest.skip(f"{program.relative_to(ROOT)} is not built")
    return program


@pytest.mark.parametrize("name", sorted(folder.name for folder in SEEDS.iterdir()))
def test_any_bytes_are_refused_or_read_within_bounds(name, tmp_path):
    found = tmp_path / "found"
    found.mkdir()
    # 256 MB: no input of a few kilobytes justifies a larger allocation.
    limits = [f"-max_total_time={SECONDS}", "-timeout=10", "-rss_limit_mb=1024", "-malloc_limit_mb=256", "-max_len=4096", "-print_final_stats=1"]
    dictionary = [] if name == "indexed_tokens" else [f"-dict={ROOT / 'tests/fuzz/json.dict'}"]
    done = subprocess.run([built(ROOT / f"build-fuzz/fuzz_{name}"), *limits, *dictionary, f"-artifact_prefix={tmp_path}/", found, SEEDS / name],
                          capture_output=True, text=True, errors="replace", timeout=SECONDS * 10)
    assert done.returncode == 0, done.stderr[-4000:]
    executions = int(re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)[1])
    assert executions > 1000, done.stderr[-4000:]


@pytest.mark.parametrize("name", ["test_checkpoint", "test_data"])
def test_unit_tests_of_the_readers_under_the_address_sanitizer(name):
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    done = subprocess.run([built(ROOT / "build-asan" / name), "--gtest_brief=1"], env=environment, capture_output=True, text=True, errors="replace",
                          timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

"""The guard against slower training: which records it takes, and when it speaks. Oracle: ratios whose verdict is plain."""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import check  # noqa: E402
from sides import BenchmarkError, processor_name  # noqa: E402


def ratios(median, lowest, highest):
    return {"median": median, "lowest": lowest, "highest": highest}


@pytest.mark.parametrize("seen, slower", [(ratios(1.8, 1.8, 1.8), False), (ratios(1.72, 1.72, 1.72), False), (ratios(1.70, 1.70, 1.70), True),
                                          (ratios(1.70, 1.55, 1.85), False), (ratios(2.5, 2.5, 2.5), False)])
def test_a_fall_beyond_the_tolerance_is_slower(seen, slower):
    assert check.verdict_of(ratios(1.8, 1.8, 1.8), seen, 0.05)["slower"] == slower


def test_a_record_that_spread_widens_the_tolerance():
    assert check.verdict_of(ratios(2.0, 1.6, 2.4), ratios(1.7, 1.7, 1.7), 0.05)["tolerance"] == pytest.approx(0.2)


def test_only_records_of_this_class_of_machine_count(tmp_path):
    for name, cores in (("small", os.cpu_count()), ("wide", os.cpu_count() + 1)):
        (tmp_path / f"train_step-{name}.json").write_text(json.dumps({"name": name, "machine": {"processor": processor_name(), "cores": cores}}))
    assert [record["name"] for record in check.records(tmp_path, "")] == ["small"]
    with pytest.raises(BenchmarkError, match="none of the 2 records .* has 'wide' in its name"):
        check.records(tmp_path, "wide")

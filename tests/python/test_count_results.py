"""The closing line of `./dev test`. Oracle: reports as GoogleTest, ctest and pytest write them, whose outcomes are counted by hand here."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def case(status: str = "RUN", result: str = "COMPLETED", **more) -> dict:
    return {"name": "x", "status": status, "result": result, **more}


def write_program_report(results: Path, program: str, *cases: dict) -> None:
    (results / "gtest").mkdir(exist_ok=True)
    (results / "gtest" / f"{program}.json").write_text(json.dumps({"testsuites": [{"testsuite": list(cases)}]}))


def write_ctest_report(results: Path, **status_of_program: str) -> None:
    programs = "".join(f'<testcase name="{name}" status="{status}"/>' for name, status in status_of_program.items())
    (results / "ctest.xml").write_text(f"<testsuite>{programs}</testsuite>")


def write_pytest_report(results: Path, inside_cases: list[str]) -> None:
    cases = "".join(f"<testcase>{inside}</testcase>" for inside in inside_cases)
    (results / "pytest.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")


def closing_line(results: Path) -> tuple[str, int]:
    done = subprocess.run([sys.executable, ROOT / "tests/count_results.py", results], capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout, done.returncode


def test_adds_up_both_kinds(tmp_path):
    write_program_report(tmp_path, "test_a", case(), case(), case(result="SKIPPED"), case(status="NOTRUN", result="SUPPRESSED"))
    write_ctest_report(tmp_path, test_a="run")
    write_pytest_report(tmp_path, ["", "<skipped/>", ""])
    assert closing_line(tmp_path) == ("4 passed, 0 failed, 3 skipped\n", 0)


def test_failures_and_errors_fail(tmp_path):
    write_program_report(tmp_path, "test_a", case(), case(failures=[{"failure": "1 != 2"}]))
    write_ctest_report(tmp_path, test_a="fail")
    write_pytest_report(tmp_path, ["<failure/>", "<error/>", ""])
    assert closing_line(tmp_path) == ("2 passed, 3 failed, 0 skipped\n", 1)


def test_a_program_that_dies_is_a_failure(tmp_path):
    write_program_report(tmp_path, "test_ends_badly", case())  # wrote its report, then ended with an exit code of its own
    write_ctest_report(tmp_path, test_ends_badly="fail", test_crashes="fail", test_never_started="notrun")
    write_pytest_report(tmp_path, [""])
    assert closing_line(tmp_path) == ("2 passed, 3 failed, 0 skipped\n", 1)


def test_missing_reports_are_failures(tmp_path):
    assert closing_line(tmp_path) == ("0 passed, 2 failed, 0 skipped\n", 1)


def test_nothing_run_is_not_a_success(tmp_path):
    write_ctest_report(tmp_path)
    write_pytest_report(tmp_path, [])
    assert closing_line(tmp_path) == ("0 passed, 0 failed, 0 skipped\n", 1)

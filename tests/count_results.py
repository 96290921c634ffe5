"""Adds up the outcomes of one `./dev test`: the cases of every GoogleTest program and of pytest.

Prints one line, `N passed, N failed, N skipped`, and exits with 1 when something failed or nothing ran.
"""

import json
import sys
import xml.etree.ElementTree as xml
from collections import Counter
from pathlib import Path


def count_program_cases(report: Path) -> Counter:
    """Outcomes of a GoogleTest program, from the JSON it writes with GTEST_OUTPUT=json:..."""
    outcomes = Counter()
    for suite in json.loads(report.read_text())["testsuites"]:
        for case in suite["testsuite"]:
            if case.get("failures"):
                outcomes["failed"] += 1
            elif case["status"] == "NOTRUN" or case["result"] == "SKIPPED":
                outcomes["skipped"] += 1
            else:
                outcomes["passed"] += 1
    return outcomes


def count_unit_tests(results: Path) -> Counter:
    """All programs that ctest started. One that failed without a failed case of its own (it crashed, hung or never started) is one failure."""
    outcomes = Counter()
    report_of_ctest = results / "ctest.xml"
    if not report_of_ctest.exists():
        return Counter(failed=1)
    for program in xml.parse(report_of_ctest).getroot().iter("testcase"):
        report = results / "gtest" / f"{program.get('name')}.json"
        cases = count_program_cases(report) if report.exists() else Counter()
        if program.get("status") != "run" and not cases["failed"]:
            cases["failed"] += 1
        outcomes += cases
    return outcomes


def count_python_tests(results: Path) -> Counter:
    """pytest's cases, from its JUnit report; errors of set-up and collection are failures."""
    report = results / "pytest.xml"
    if not report.exists():
        return Counter(failed=1)
    outcomes = Counter()
    for case in xml.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            outcomes["failed"] += 1
        elif case.find("skipped") is not None:
            outcomes["skipped"] += 1
        else:
            outcomes["passed"] += 1
    return outcomes


def main() -> int:
    results = Path(sys.argv[1])
    outcomes = count_unit_tests(results) + count_python_tests(results)
    print(f"{outcomes['passed']} passed, {outcomes['failed']} failed, {outcomes['skipped']} skipped")
    return 1 if outcomes["failed"] or not outcomes["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())

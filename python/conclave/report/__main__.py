"""The command line, started by `conclave report`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

from conclave.printable import printable
from conclave.report.errors import ReportError
from conclave.report.run import read_run


def main() -> int:
    """Exit codes: 0, 2 for a user's mistake, 1 for a failure of the machine."""
    parser = argparse.ArgumentParser(prog="python -m conclave.report", description="Makes an HTML page of a run's metrics, or one that compares runs. Started by: conclave report.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="the folder of a run (run.output_dir)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the page to write")
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    # Numbers and letters that cannot be drawn are left out of a picture, which is all there is to say of them.
    warnings.simplefilter("ignore")
    try:
        runs = [read_run(folder) for folder in options.runs]
        from conclave.report.comparison import comparison_of, named_runs  # these need matplotlib
        from conclave.report.page import page_of
        page = page_of(runs[0]) if len(runs) == 1 else comparison_of(named_runs(runs))
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed, which a report needs: pip install {error.name}.", file=sys.stderr)
        return 1
    aside = options.output.with_name(f".{options.output.name}.{os.getpid()}")  # whoever has the old page open never sees half of a new one
    try:
        aside.write_text(page, encoding="utf-8")
        aside.replace(options.output)
    except OSError as error:
        aside.unlink(missing_ok=True)
        print(f"error: {printable(options.output)} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    for run in runs:
        of = f"{printable(run.folder)}: " if len(runs) > 1 else ""
        for flaw in run.flaws:
            print(f"note: {of}{flaw}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

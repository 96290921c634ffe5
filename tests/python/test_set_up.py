"""The progress of `./dev setup`: what a command says last, and all of it when it fails. Oracle: what the command printed."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def with_progress(command: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", f"set -euo pipefail; source tools/set_up.sh; with_progress bash -c '{command}'"], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)


def test_a_short_command_says_nothing():
    done = with_progress("echo one; echo two >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_command_that_fails_is_quoted():
    done = with_progress("echo one; echo two >&2; exit 7")
    assert done.returncode != 0 and done.stderr == "one\ntwo\n"


def test_a_terminal_shows_the_last_line_in_place():
    inner = 'bash -c "set -euo pipefail; source tools/set_up.sh; with_progress printf \'one\\ntwo\\n\'"'
    done = subprocess.run(["script", "-qec", inner, "/dev/null"], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith(b"   two\r\x1b[K") and b"\n" not in done.stdout

"""The Containerfile's steps, where no builder of images is at hand: each stage, file and command that it names is there.

Oracles: the file system, `./dev --help`, and Debian's own lists of packages where this machine has them. `./dev wheel`, which it runs, has a test of its
own (test_wheel.py).
"""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = [line.split(maxsplit=1) for line in (ROOT / "Containerfile").read_text().splitlines() if line and not line.startswith("#")]
RUN = [rest for word, rest in STEPS if word == "RUN"]


def test_every_step_is_an_instruction_that_builders_know():
    assert {word for word, _ in STEPS} <= {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "ENTRYPOINT"}
    assert STEPS[0][0] == "FROM"


def test_stages_are_named_before_they_are_used():
    seen = set()
    for word, rest in STEPS:
        if word == "FROM":
            image, stage = re.fullmatch(r"(\S+) AS ([\w-]+)", rest).groups()
            assert image in seen or re.fullmatch(r"(debian:12(-slim)?|nvidia/cuda:13\.0\.\d+-devel-\S+)", image), f"{image} is no stage and no known image"
            seen.add(stage)
        for used in re.findall(r"(?:--from=|,from=)([\w-]+)", rest):
            assert used in seen, f"{used} is used before it is built"
    assert {"cpu", "cuda"} <= seen


def test_commands_of_the_checkout_are_there():
    help_text = subprocess.run([ROOT / "dev", "--help"], capture_output=True, text=True, check=True).stdout
    used = [name for step in RUN for name in re.findall(r"\./dev (\w+)", step)]
    assert sorted(set(used)) == ["setup", "wheel"]
    for name in used:
        assert re.search(rf"^  {name}\b", help_text, re.MULTILINE)


def test_what_is_built_and_kept_locally_does_not_travel():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in (".git", ".venv*", "build", "build-*", "dist", "runs"):
        assert name in ignored
    for pattern in ignored:
        if pattern and pattern[0] not in "#*":
            assert not [file for file in tracked if re.match(re.escape(pattern).replace(r"\*", "[^/]*") + "(/|$)", file)], pattern


def test_both_images_end_in_the_program():
    ends = [rest for word, rest in STEPS if word == "ENTRYPOINT"]
    scripts = (ROOT / "pyproject.toml").read_text()
    assert ends == ['["conclave"]'] * 2 and 'conclave = "conclave.job:main"' in scripts

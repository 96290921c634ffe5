"""The `conclave` program from Python: training by a job file, plans, and the metrics that runs leave."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from conclave.errors import CheckpointError, ConfigError, JobError

_USER_ERROR = 2  # docs/errors.md


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        folder: `run.output_dir` of its job.
    """

    folder: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary a step, as metrics.jsonl has it (docs/job_file.md)."""
        return read_metrics(self.folder)

    @property
    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*"))


class Job:
    """A job file of the program.

    `overrides`: {"section.key": value}, as `--set` gives them.

    Raises:
        ConfigError: the job cannot be run; the program's own words.
    """

    def __init__(self, path: str | PathLike[str], overrides: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self._overrides = [word for key, value in (overrides or {}).items() for word in ("--set", f"{key}={json.dumps(value)}")]
        if not self.path.exists():
            raise ConfigError(f"the job file {self.path} does not exist.")

    def validate(self, world: int = 1) -> None:
        """Refuses a job that could not be trained on `world` ranks. Nothing is started."""
        run_program(["validate", self.path, "--world", world, *self._overrides])

    def train(self, ranks: int = 1, quiet: bool = False) -> Run:
        """Trains on `ranks` processes of this machine to the job's last step, or goes on where it stopped. What it prints goes to standard error.

        Raises:
            JobError: the program ended with an error; `exit_code` tells which kind.
        """
        run_program(["train", self.path, "--ranks", ranks, *self._overrides], show=not quiet)
        resolved = yaml.safe_load(self.path.read_text())
        folder = resolved["run"]["output_dir"]
        for word in self._overrides[1::2]:
            key, _, value = word.partition("=")
            folder = json.loads(value) if key == "run.output_dir" else folder
        return Run(Path(_expanded(folder)))

    def plan(self, world: int = 1, device: str | None = None, search: bool = False) -> SimpleNamespace:
        """Memory, traffic and time of a step (docs/plan.md), as an object whose attributes are the keys of `conclave plan --json`."""
        arguments = ["plan", self.path, "--world", world, "--json", *(["--device", device] if device else []), *(["--search"] if search else [])]
        return json.loads(run_program([*arguments, *self._overrides]), object_hook=_object)


def plan(path: str | PathLike[str], world: int = 1, device: str | None = None, search: bool = False) -> SimpleNamespace:
    """`Job(path).plan(...)`."""
    return Job(path).plan(world, device, search)


def read_metrics(folder: str | PathLike[str]) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` in a run's folder: one dictionary a step, ready for pandas.DataFrame.

    Raises:
        CheckpointError: the folder has none.
    """
    file = Path(folder) / "metrics.jsonl"
    if not file.exists():
        raise CheckpointError(f"{file} does not exist: {folder} is not the output_dir of a run, or the run has not done a step.")
    return [json.loads(line) for line in file.read_text().splitlines()]


def run_program(arguments: Sequence[object], show: bool = False) -> str:
    """Runs the program and returns its standard output; `show`: passes on what it prints, too."""
    command = [str(program()), *map(str, arguments)]
    # Not subprocess.run, which kills the program at Ctrl-C: the program gets the signal too, saves, and ends by itself.
    with subprocess.Popen(command, env=program_environment(), stdin=subprocess.DEVNULL, text=True, stdout=sys.stderr if show else subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        done = _wait(process)
    if show:
        sys.stderr.write(done.stderr)
    if done.returncode == _USER_ERROR:
        raise ConfigError(done.stderr.strip().removeprefix("error: "))
    if done.returncode != 0:
        raise JobError(f"conclave {arguments[0]} ended with exit code {done.returncode}:\n{done.stderr.strip()}", done.returncode)
    return done.stdout or ""


def program() -> Path:
    """The program: of the installed package, or of the build folder of the checkout."""
    package = Path(__file__).resolve().parent
    for path in (package / "bin/conclave", package.parents[1] / "build/conclave"):
        if path.exists():
            return path
    raise ConfigError(f"the program `conclave` is neither in {package / 'bin'} nor in {package.parents[1] / 'build'}.\n"
                      "Build it: ./dev build, or install the wheel that ./dev wheel makes.")


def program_environment() -> dict[str, str]:
    """The environment in which the program finds the libraries of the installed torch, and this Python, which runs some of its commands."""
    libraries = Path(find_spec("torch").submodule_search_locations[0]) / "lib"
    first = {"LD_LIBRARY_PATH": str(libraries), "PATH": str(Path(sys.executable).parent)}
    return {"CONCLAVE_PYTHON": sys.executable, **os.environ, **{name: os.pathsep.join(filter(None, [value, os.environ.get(name, "")])) for name, value in first.items()}}


def main() -> None:
    """The console script `conclave` of an installed package: becomes the program."""
    path = program()
    os.execve(path, [str(path), *sys.argv[1:]], program_environment())


def _wait(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    interrupted: KeyboardInterrupt | None = None
    while True:
        try:
            stdout, stderr = process.communicate()
        except KeyboardInterrupt as error:
            interrupted = error
            continue
        if interrupted:
            sys.stderr.write(stderr)
            raise interrupted
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def _expanded(path: str) -> str:
    """A path of the job file as the program reads it (src/config/path_text.h). It has refused what cannot be read."""
    path = os.path.expanduser(path)
    return re.sub(r"\$(?:\$|\{(\w+)\}|([A-Za-z_]\w*))", lambda found: os.environ[found[1] or found[2]] if found[1] or found[2] else "$", path)


def _object(keys: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(**keys)

"""Faults put into a process from outside: of the system's file calls (fault_shim.c), and death at a function's entry."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ranks import program

SOURCE = Path(__file__).with_name("fault_shim.c")
MANY = 1_000_000


class Shim:
    """The compiled shim. `fault` gives the variables for the process that is to suffer; the process itself knows nothing of it."""

    def __init__(self, folder: Path) -> None:
        self.library = folder / "fault_shim.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", self.library, SOURCE, "-ldl"], check=True)

    def fault(self, operation: str, path: str, action: str, first: int = 1, last: int | None = None) -> dict[str, str]:
        """`action` at the calls `first` to `last` (one call when it is not given) of `operation` on files whose path contains `path`."""
        return {"LD_PRELOAD": str(self.library), "FAULT": f"{operation}:{path}:{first}:{first if last is None else last}:{action}"}

    def death_at_first(self, function: str) -> dict[str, str]:
        """SIGKILL where the program enters `function` for the first time."""
        return self.death_in(function, "start", "the program")

    def death_in(self, function: str, operation: str, path: str) -> dict[str, str]:
        """SIGKILL where the program enters `function` next after the first `operation` on such a file."""
        return {**self.fault(operation, path, "arm"), "FAULT_FUNCTION": f"{address_of(function):x}"}


def address_of(function: str) -> int:
    """The place in the program's file of a function, named as in C++, without its parameters."""
    lines = subprocess.run(["nm", "-C", program()], capture_output=True, text=True, check=True).stdout.splitlines()
    found = {int(address, 16) for address, kind, name in (line.split(" ", 2) for line in lines if line[0] != " ")
             if kind in "tT" and name.startswith(function + "(") and "[clone" not in name}
    assert len(found) == 1, f"{function} is at {len(found)} places of {program()}"
    return found.pop()

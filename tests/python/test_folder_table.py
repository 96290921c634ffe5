"""A source may include only the folders that its own line in CMakeLists.txt names: a wrong include does not build.

The tests build small projects of three folders with the project's own cmake/Folder.cmake: `low`, `middle`, which uses low, and `high`, which uses
middle alone.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("ninja")), reason="cmake and ninja build the program")


def build(folder: Path, sources: dict[str, str]) -> subprocess.CompletedProcess:
    """Builds `high` of the small project; `sources` replaces or adds files under src/."""
    files = {
        "low/low.h": "#pragma once\ninline int low() { return 1; }\n",
        "low/low.cpp": '#include "low/low.h"\n',
        "middle/middle.h": '#pragma once\n#include "low/low.h"\ninline int middle() { return low(); }\n',
        "middle/middle.cpp": '#include "middle/middle.h"\n',
        "high/high.cpp": '#include "middle/middle.h"\nint high() { return middle(); }\n',
    } | sources
    for name, text in files.items():
        path = folder / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\n"
        "project(small LANGUAGES CXX)\n"
        f"include({ROOT}/cmake/Folder.cmake)\n"
        "conclave_folder(low)\n"
        "conclave_folder(middle USES low)\n"
        "conclave_folder(high USES middle)\n")
    quiet = {"capture_output": True, "text": True}
    configured = subprocess.run(["cmake", "-S", folder, "-B", folder / "build", "-G", "Ninja"], **quiet)
    assert configured.returncode == 0, configured.stderr
    return subprocess.run(["cmake", "--build", folder / "build", "--target", "conclave_high"], **quiet)


def test_a_folder_may_include_what_its_line_names(tmp_path):
    """The header of `middle` includes `low`, which `high` may not include itself."""
    built = build(tmp_path, {})
    assert built.returncode == 0, built.stdout


@pytest.mark.parametrize("include", ["low/low.h", "other/other.h"])
def test_any_other_include_does_not_build(tmp_path, include):
    """`low` is on the compiler's path by way of middle's headers, `other` lies beside it under no line at all."""
    built = build(tmp_path, {"other/other.h": "#pragma once\n", "high/high.cpp": f'#include "{include}"\n'})
    assert built.returncode != 0
    assert f'src/high/high.cpp: #include "{include}"' in built.stdout.replace("\n  ", " ")
    assert "src/high may use: middle" in " ".join(built.stdout.split())


def test_a_header_is_held_to_the_table_too(tmp_path):
    built = build(tmp_path, {"high/high.h": '#pragma once\n#include "low/low.h"\n'})
    assert built.returncode != 0
    assert "src/high/high.h" in built.stdout


def test_a_lower_folder_may_not_include_a_higher_one(tmp_path):
    built = build(tmp_path, {"low/low.cpp": '#include "middle/middle.h"\n'})
    assert built.returncode != 0
    assert "src/low/low.cpp" in built.stdout

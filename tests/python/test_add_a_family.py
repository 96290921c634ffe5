"""docs/add_a_family.md follows a family that exists. Oracle: its files, and the list of families."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/add_a_family.md").read_text()
CODE = re.findall(r"^```cpp\n// (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
# The families by their model_type, as their files give it.
FAMILIES = {re.search(r'_family = \{\s*"(\w+)"', file.read_text())[1]: file
            for file in sorted((ROOT / "src/families").glob("*.cpp")) if "_family = {" in file.read_text()}


@pytest.mark.parametrize("file, code", CODE, ids=[code.splitlines()[0][:40] for _, code in CODE])
def test_the_page_shows_what_is_in_the_file(file, code):
    assert code in (ROOT / file).read_text()


def test_the_page_shows_all_of_the_source():
    """What is left of the worked example, without comments, includes and braces, is nothing."""
    rest = (ROOT / "src/families/llama.cpp").read_text()
    for file, code in CODE:
        if file == "src/families/llama.cpp":
            rest = rest.replace(code, "")
    lines = [line for line in rest.splitlines() if line and not line.startswith(("//", "#include", "namespace", "}  // namespace"))]
    assert lines == []


def test_each_family_is_entered_and_has_its_row_and_its_base_case():
    assert len(FAMILIES) >= 6
    listed = (ROOT / "src/families/family.cpp").read_text()
    table = (ROOT / "docs/families.md").read_text()
    cases = (ROOT / "tests/parity/tiny_families.py").read_text()
    for family in FAMILIES:
        assert f"&{family}_family" in listed
        assert f"| `{family}` |" in table
        assert f'Case("{family}"),' in cases

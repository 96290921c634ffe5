"""What several files of this folder begin with."""

import pytest
from faults import Shim
from undisturbed import run_undisturbed


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return Shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"))

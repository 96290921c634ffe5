"""Two programs give the same bits. Oracle: another build of the program, named by CONCLAVE_OTHER_PROGRAM; for changes that may not change a result."""

import os

import bits
import pytest

OTHER = os.environ.get("CONCLAVE_OTHER_PROGRAM")


@pytest.mark.slow
@pytest.mark.skipif(not OTHER, reason="CONCLAVE_OTHER_PROGRAM names no program to compare with")
@pytest.mark.parametrize("name", bits.CASES)
def test_two_programs_give_the_same_bits(name, monkeypatch):
    own = bits.bits_of(name)
    monkeypatch.setenv("CONCLAVE_PROGRAM", OTHER)
    assert own == bits.bits_of(name)

"""Commands that these tests start find the `conclave` package of this checkout. What several tests of data share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2] / "python")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of bytes."""
    from token_files import byte_tokenizer

    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def build(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Builds a set of the inputs; gives what was said, with the exit code in front if it is not 0."""
    from conclave.data.__main__ import main

    def run(*words: str | Path) -> str:
        code = main(["build", *map(str, words), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "out/set"), "--overwrite"])
        told = capsys.readouterr()
        return told.out if code == 0 else f"{code} {told.err}"

    return run

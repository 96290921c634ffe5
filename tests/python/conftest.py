"""Commands that these tests start find the `conclave` package of this checkout. What several tests of data share."""

from __future__ import annotations

import os
import sys
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


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer of the program's own, with the special tokens of ChatML."""
    import random

    from chat_cases import MARKED
    from conclave.data.__main__ import main
    from transformers import AutoTokenizer

    made = tmp_path_factory.mktemp("chat-tokenizer")
    corpus = made / "corpus.txt"
    corpus.write_text(Path(random.__file__).read_text())
    assert main(["train-tokenizer", str(corpus), "--vocab-size", "400", "--output", str(made / "tokenizer.json")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(made)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.chat_template = MARKED
    tokenizer.save_pretrained(made)
    return made


@pytest.fixture
def processes() -> None:
    """With `work_here`: real workers."""


@pytest.fixture
def work_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of chats work in this process."""
    from chat_cases import NoWorkers
    from conclave.data import tokenizing

    tokenizing._template_of.cache_clear()
    if "processes" not in request.fixturenames:
        # The name of the module in the package is a function's.
        monkeypatch.setattr(sys.modules["conclave.data.build"], "Workers", NoWorkers)


@pytest.fixture
def chats(tmp_path: Path, chat_tokenizer: Path, work_here: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Builds a set of the words with a template; gives what was said, with the exit code in front if it is not 0."""
    from conclave.data import tokenizing
    from conclave.data.__main__ import main

    def run(template: str, *words: str | Path) -> str:
        (tmp_path / "template.jinja").write_text(template)
        tokenizing._template_of.cache_clear()
        given = ["build", *map(str, words), "--chats", "--tokenizer", str(chat_tokenizer), "--chat-template", str(tmp_path / "template.jinja")]
        code = main([*given, "--output", str(tmp_path / "out"), "--overwrite"])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return told.out if code == 0 else f"{code} {told.err}"

    return run

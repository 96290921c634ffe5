"""Tokenizers from elsewhere, damaged or unusual: an error with file and reason, exit code 2, nothing written.

Oracle: the `tokenizers` library for what a good one does.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conclave.data import tokenizer_training
from conclave.data.__main__ import main
from token_files import byte_tokenizer, read_pair, tokenizer_of_words
from tokenizers import Tokenizer

LETTERS = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}
WHOLE = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
    "decoder": None,
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
              "byte_fallback": False, "vocab": LETTERS, "merges": []},
}  # fmt: skip


def precompiled(content: bytes) -> dict:
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}}


DAMAGED = {
    "empty vocabulary": ({"model": {**WHOLE["model"], "vocab": {}}}, "has an empty vocabulary"),
    "empty file": ("", "is no tokenizer of the `tokenizers` library, or damaged"),
    "no object": ("[1, 2]", "is no tokenizer"),
    "binary": ("\0" * 100, "is no tokenizer"),
    "deep": ('{"version":' + "[" * 100_000, "is no tokenizer"),
    "no character map": (precompiled(b""), "is no tokenizer"),
    "character map of garbage": (precompiled(b"\xff" * 40), "is no tokenizer"),
    "character map with a wrong size": (precompiled(b"\x08\0\0\0" + b"\xff" * 12), "is no tokenizer"),
    "regular expression": ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "["}, "behavior": "Isolated", "invert": False}}, "is no tokenizer"),
    "panic when it encodes": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "cannot encode a text"),
    "empty unigram": ({"model": {"type": "Unigram", "vocab": [], "unk_id": 0}}, "is no tokenizer"),
    "id too large": ({"model": {"type": "WordLevel", "vocab": {"a": 2**32 - 1}, "unk_token": "a"}}, "has a token of id 4294967295"),
    "words without unknown": ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}}, "It has no unknown token"),
    "pieces without unknown": ({"model": {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": None}}, "It has no unknown token"),
    "word pieces without unknown": ({"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                                               "max_input_chars_per_word": 100}}, "It has no unknown token"),
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("some words")
    return path


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_tokenizer_is_refused(name: str, source: Path, tmp_path: Path) -> None:
    change, reason = DAMAGED[name]
    file = tmp_path / "tokenizer.json"
    file.write_text(change if isinstance(change, str) else json.dumps({**WHOLE, **change}))
    done = subprocess.run([sys.executable, "-m", "conclave.data", "build", source, "--tokenizer", file, "--output", tmp_path / "out/set"], capture_output=True,
                          text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {file} ") and reason in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))


def test_a_word_that_no_token_stands_for_is_named_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Documents in the vocabulary are built by the same tokenizer."""
    folder = tokenizer_of_words(tmp_path / "tokenizer", 9, unknown=None)
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "w1 w2"}\n')
    command = ["build", str(source), "--tokenizer", str(folder), "--output", str(tmp_path / "set"), "--overwrite"]
    assert main(command) == 0
    assert read_pair(tmp_path / "set") == [[1, 2, 9]]
    source.write_text('{"text": "w1 w2"}\n{"text": "other"}\n')
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"{folder / 'tokenizer.json'} cannot encode {source}, line 2 (byte 18): " in error and "unk_token" in error
    assert read_pair(tmp_path / "set") == [[1, 2, 9]]


@pytest.mark.parametrize("ends", ["look_at", "tokenize"])
def test_a_library_that_ends_its_process_is_told_as_ours(ends: str, source: Path, tmp_path: Path) -> None:
    """The function ends the worker as an abort of the library does."""
    byte_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "aborting.py").write_text("import os, signal\ndef aborts(*arguments):\n    os.kill(os.getpid(), signal.SIGABRT)\n")
    script = (f"import sys, aborting, conclave.data; sys.modules['conclave.data.build'].{ends} = aborting.aborts\n"
              "if __name__ == '__main__':\n    from conclave.data.__main__ import main\n    sys.exit(main(sys.argv[1:]))\n")
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "script.py", "build", source, "--tokenizer", tmp_path / "tokenizer", "--output", tmp_path / "out/set"],
                          capture_output=True, text=True, timeout=120)
    told = {"look_at": (2, "ends the process that opens it: it is damaged"), "tokenize": (1, "a worker process ended in the middle of its work")}[ends]
    assert done.returncode == told[0] and told[1] in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("kind", ["fifo", "device", "folder without one", "loop", "name too long"])
def test_what_is_no_file_is_refused(kind: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokenizer.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    path = {"device": Path("/dev/zero"), "folder without one": tmp_path / "sub", "name too long": tmp_path / ("x" * 300)}.get(kind, path)
    (tmp_path / "sub").mkdir()
    assert main(["build", str(source), "--tokenizer", str(path), "--output", str(tmp_path / "set")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["build", str(path if kind != "folder without one" else "/dev/null"), "--tokenizer", str(tmp_path / "sub"), "--output",
                 str(tmp_path / "set")]) == 2


@pytest.mark.parametrize("config", ["[", "[1]", "[" * 100_000, "\xff"])
def test_a_damaged_configuration_is_refused(config: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = byte_tokenizer(tmp_path / "tokenizer")
    (folder / "tokenizer_config.json").write_bytes(config.encode("latin-1"))
    assert main(["build", str(source), "--tokenizer", str(folder), "--output", str(tmp_path / "set")]) == 2
    assert "tokenizer_config.json is no JSON object" in capsys.readouterr().err
    assert main(["build", str(source), "--tokenizer", str(folder), "--output", str(tmp_path / "set"), "--no-append-eos"]) == 0


@pytest.mark.parametrize("size", ["256", "0", "-5", "1000000000000", "9" * 40])
def test_a_vocabulary_that_cannot_be(size: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-tokenizer", str(source), "--vocab-size", size, "--output", str(tmp_path / "tokenizer.json")]) == 2
    assert f"error: --vocab-size {size} is too " in capsys.readouterr().err


def test_characters_that_vanish_are_told(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(WHOLE))
    assert main(["build", str(source), "--tokenizer", str(tmp_path), "--output", str(tmp_path / "set")]) == 0
    assert "warning: characters that the tokenizer does not know leave no token" in capsys.readouterr().out
    byte_tokenizer(tmp_path / "bytes")
    assert main(["build", str(source), "--tokenizer", str(tmp_path / "bytes"), "--output", str(tmp_path / "set"), "--overwrite"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_nothing_is_left_to_chance(tmp_path: Path) -> None:
    """A tokenizer with dropout gives the ids that it gives without."""
    merges = [["a", "b"], ["ab", "ab"]]
    model = {**WHOLE["model"], "vocab": {"a": 0, "b": 1, "ab": 2, "abab": 3}, "merges": merges, "dropout": 0.9}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**WHOLE, "model": model}))
    (tmp_path / "a.txt").write_text("abab" * 100)
    assert main(["build", str(tmp_path / "a.txt"), "--tokenizer", str(tmp_path), "--output", str(tmp_path / "set")]) == 0
    assert read_pair(tmp_path / "set") == [[3] * 100]


def test_a_long_text_trains_the_same_tokenizer_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train-tokenizer", tokenizer_training.__file__, "--vocab-size", "400", "--output", str(tmp_path / "whole/tokenizer.json")]) == 0
    monkeypatch.setattr(tokenizer_training, "LONG_BYTES", 100)
    assert main(["train-tokenizer", tokenizer_training.__file__, "--vocab-size", "400", "--output", str(tmp_path / "parts/tokenizer.json")]) == 0
    assert (tmp_path / "parts/tokenizer.json").read_bytes() == (tmp_path / "whole/tokenizer.json").read_bytes()


@pytest.mark.parametrize(("stop", "ignored", "code", "said"), [
    (signal.SIGINT, False, 130, "interrupted; nothing was written\n"), (signal.SIGTERM, False, 143, ""), (signal.SIGHUP, False, 129, ""),
    (signal.SIGHUP, True, 0, ""),
])
def test_an_interruption_leaves_nothing(stop: signal.Signals, ignored: bool, code: int, said: str, tmp_path: Path) -> None:
    """In the middle of the work. `ignored`: under nohup, where the build goes on."""
    byte_tokenizer(tmp_path / "tokenizer")
    with open(tmp_path / "a.txt", "w") as file:
        for _ in range(1 if ignored else 20):
            file.write("words and words, line after line\n" * 100_000)
    command = [sys.executable, "-m", "conclave.data", "build", tmp_path / "a.txt", "--tokenizer", tmp_path / "tokenizer", "--output", tmp_path / "out/set"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(stop, signal.SIG_IGN if ignored else signal.SIG_DFL))
    assert started.stdout is not None and "reading 1 file" in started.stdout.readline()
    while not list(tmp_path.glob("out/*")):
        time.sleep(0.1)
    (os.killpg if stop == signal.SIGINT else os.kill)(started.pid, stop)
    _, error = started.communicate(timeout=300)
    assert started.returncode == code and error == said
    assert sorted(path.name for path in tmp_path.glob("out/*")) == (["set.bin", "set.idx"] if ignored else [])


def test_synthetic_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the entropy of the steps, counted in what was written; the same arguments give the same files."""
    command = ["synthetic", "--vocab-size", "1000", "--documents", "300", "--document-tokens", "700", "--seed", "3"]
    for name in ("a", "b"):
        assert main([*command, "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    documents = np.array(read_pair(tmp_path / "a"))
    assert documents.shape == (300, 700) and documents.min() >= 0 and documents.max() == 999
    steps = np.bincount(((documents[:, 1:] - documents[:, :-1]) % 1000).ravel()) / documents[:, 1:].size
    steps = steps[steps > 0]
    told = float(capsys.readouterr().out.split("has a loss of ")[1].split()[0])
    assert abs(-(steps * np.log(steps)).sum() - told) < 0.01 and told < 3
    assert main(["synthetic", "--vocab-size", "0", "--output", str(tmp_path / "c")]) == 2
    assert main(["synthetic", "--vocab-size", "1", "--documents", "2", "--document-tokens", "1", "--output", str(tmp_path / "d")]) == 0
    assert read_pair(tmp_path / "d") == [[0], [0]]


def test_the_wordless_tokenizer_is_a_good_one() -> None:
    """What DAMAGED changes is whole before."""
    assert Tokenizer.from_str(json.dumps(WHOLE)).encode("ab").ids == [0, 1]

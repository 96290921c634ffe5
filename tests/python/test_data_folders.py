"""Folders: what is read of them, what is left out and named, and in which order; the outputs of a build.

Oracle: the files as written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conclave.data.__main__ import main
from token_files import TEXTS, built, read_pair, write_arrow, write_parquet


def test_what_is_not_read_is_named_with_its_count(tmp_path: Path, tokenizer: Path, build: Callable[..., str]) -> None:
    folder = tmp_path / "folder"
    for hidden in (".git", ".ipynb_checkpoints", "sub/.ipynb_checkpoints"):
        (folder / hidden).mkdir(parents=True)
        (folder / hidden / "a.txt").write_text("not this")
    for name in ("a.txt", "b.md", "c.rst", "sub/d.rst", "e.CPP", "LICENSE", "._a.txt"):
        (folder / name).write_text(name)
    os.mkfifo(folder / "pipe.txt")
    (folder / "nowhere.txt").symlink_to("absent")
    told = build(folder)
    assert built(tmp_path, tokenizer) == ["a.txt", "b.md"]
    assert f"not read in {folder}: 1 without a suffix, 1 .cpp, 2 .rst" in told
    assert f"left out in {folder}: .git, .ipynb_checkpoints, ._a.txt (hidden)" in told.replace("._a.txt, .git, .ipynb_checkpoints", ".git, .ipynb_checkpoints, ._a.txt")
    assert f"left out in {folder}: nowhere.txt, pipe.txt (no regular files)" in told
    build(folder, "--suffix", "RST", "--suffix", ".cpp")  # in any case, with a dot or without
    assert built(tmp_path, tokenizer) == ["a.txt", "b.md", "c.rst", "e.CPP", "sub/d.rst"]


def test_linked_folders_and_files_are_read_once(tmp_path: Path, tokenizer: Path, build: Callable[..., str]) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep/b.txt").write_text("b")
    (elsewhere / "deep/up").symlink_to("..")
    folder = tmp_path / "folder"
    (folder / "own").mkdir(parents=True)
    (folder / "own/a.txt").write_text("a")
    (folder / "here").symlink_to(".")
    (folder / "link1").symlink_to(elsewhere)
    (folder / "link2").symlink_to(elsewhere / "deep")
    (folder / "again").symlink_to("own")
    (folder / "loop").symlink_to("loop")
    (folder / "same.txt").symlink_to("own/a.txt")
    (folder / "other.txt").symlink_to(elsewhere / "deep/b.txt")
    (tmp_path / "blob").write_text("c")
    (folder / "c.txt").symlink_to("../blob")
    told = build(folder)
    assert sorted(built(tmp_path, tokenizer)) == ["a", "b", "c"]
    assert "again, here, link1/deep/up, link2, other.txt and 1 more (links to what is read already)" in told
    assert "loop (no regular files)" in told


def saved_set(folder: Path, texts: list[str], shards: int = 2) -> None:
    """As `save_to_disk` of the `datasets` library leaves a set."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{shards:05}.arrow" for number in range(shards)]
    for number, name in enumerate(names):
        write_arrow(folder / name, texts[len(texts) * number // shards : len(texts) * (number + 1) // shards])
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], "_fingerprint": "1", "_split": None}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"text": {"dtype": "string", "_type": "Value"}}}))


def test_a_saved_set_is_read_without_what_was_cached_beside_it(tmp_path: Path, tokenizer: Path, build: Callable[..., str]) -> None:
    folder = tmp_path / "saved"
    saved_set(folder, TEXTS)
    write_arrow(folder / "cache-0123456789abcdef.arrow", ["a mapped copy"])
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    told = build(folder)
    assert built(tmp_path, tokenizer) == TEXTS
    assert "README.md, cache-0123456789abcdef.arrow, dataset_info.json, state.json (describe the data, or are caches)" in told
    (folder / "data-00001-of-00002.arrow").unlink()
    assert "is not whole: data-00001-of-00002.arrow is missing" in build(folder)
    (folder / "state.json").write_text("[" * 100_000)
    assert "state.json is not what the `datasets` library writes" in build(folder)


def test_of_several_splits_one_is_taken(tmp_path: Path, tokenizer: Path, build: Callable[..., str]) -> None:
    folder = tmp_path / "sets"
    saved_set(folder / "train", TEXTS)
    saved_set(folder / "test", ["tested"], shards=1)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert f"2 error: {folder} holds the splits test, train. Take one with --split" in build(folder)
    assert "holds the splits test, train" in build(folder, "--split", "validation")
    assert "the splits other than train" in build(folder, "--split", "train")
    assert built(tmp_path, tokenizer) == TEXTS
    build(folder, "--split", "all")
    assert built(tmp_path, tokenizer) == ["tested", *TEXTS]
    build(folder / "test")
    assert built(tmp_path, tokenizer) == ["tested"]


def test_a_folder_of_the_hub(tmp_path: Path, tokenizer: Path, build: Callable[..., str]) -> None:
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    (folder / ".cache/huggingface").mkdir(parents=True)
    write_parquet(folder / "data/train-00000-of-00002.parquet", TEXTS[:2])
    write_parquet(folder / "data/train-00001-of-00002-0123456789abcdef.parquet", TEXTS[2:])
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert "README.md (describe the data, or are caches)" in build(folder)
    assert built(tmp_path, tokenizer) == TEXTS
    write_parquet(folder / "data/validation-00000-of-00001.parquet", ["validated"])
    assert "holds the splits train, validation" in build(folder)
    build(folder, "--split", "validation")
    assert built(tmp_path, tokenizer) == ["validated"]


def test_nothing_is_overwritten_in_silence(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, set_, trained = tmp_path / "a.txt", tmp_path / "set", tmp_path / "new/tokenizer.json"
    source.write_text("some words")
    commands = [["build", str(source), "--tokenizer", str(tokenizer), "--output", str(set_)],
                ["build", str(source), str(source), "--validation-fraction", "0.5", "--tokenizer", str(tokenizer), "--output", str(set_)],
                ["train-tokenizer", str(source), "--vocab-size", "257", "--output", str(trained)],
                ["synthetic", "--vocab-size", "10", "--documents", "2", "--document-tokens", "5", "--output", str(tmp_path / "synthetic")]]
    for command in commands:
        assert main(command) == 0
        there = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        capsys.readouterr()
        assert main(command) == 2
        assert "would be replaced. Give another --output, or --overwrite" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == there
        assert main([*command, "--overwrite"]) == 0
    Path(f"{set_}.bin").unlink()
    assert main(commands[0]) == 2  # half of a set is a set, too


@pytest.mark.parametrize("output", ["file.txt/set", "/proc/set", "x" * 300, "a\0b", "/dev/null/set", "folder"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(output: str, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch,
                                                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.txt").write_text("text")
    Path("folder.bin").mkdir()
    assert main(["build", "file.txt", "--tokenizer", str(tokenizer), "--output", output]) == 2
    assert main(["synthetic", "--vocab-size", "10", "--output", output]) == 2
    if output != "folder":
        assert main(["train-tokenizer", "file.txt", "--output", f"{output}/tokenizer.json"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --output") and "reading" not in error and "Traceback" not in error


@pytest.mark.parametrize("words", [["build"], ["nothing"], [], ["build", "x", "--workers", "many"], ["synthetic", "--vocab-size", "1e3", "--output", "x"],
                                   ["build", "x", "--order", "size", "--output", "y"]])
def test_a_mistake_in_the_words_is_told_as_the_program_does(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "usage:" not in error and error.count("\n") == 2


def test_names_that_are_no_text_are_printed_as_escapes(tmp_path: Path, tokenizer: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff\x1b[31m"
    os.mkdir(folder)
    for name in (b"a\xfe.txt", b"b\n.csv"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(b"text")
    for name, writer in (("a.arrow", write_arrow), ("a.parquet", write_parquet)):
        writer(tmp_path / name, TEXTS)
        os.rename(tmp_path / name, folder + b"/\xfe" + name.encode())
    os.mkdir(folder + b"/.tokenizer")
    with open(folder + b"/.tokenizer/tokenizer.json", "wb") as file:
        file.write((tokenizer / "tokenizer.json").read_bytes())
    command = [sys.executable, "-m", "conclave.data", "build", folder, "--tokenizer", folder + b"/.tokenizer", "--output", tmp_path / "set"]
    refused = subprocess.run(command, capture_output=True)
    assert refused.returncode == 2 and rb"\xff\x1b[31m holds files that look like data" in refused.stderr and b"\x1b" not in refused.stderr
    done = subprocess.run([*command, "--ignore", ".csv"], capture_output=True)
    assert done.returncode == 0 and b"\x1b" not in done.stdout + done.stderr
    assert len(read_pair(tmp_path / "set")) == 1 + 2 * len(TEXTS)

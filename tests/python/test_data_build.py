"""`python -m conclave.data`: what it writes is read back by a parser apart from its code, `read_pair`."""

from __future__ import annotations

import inspect
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from token_files import END, decoded, read_pair, tokenizer_of_words
from tokenizers import Tokenizer

from conclave.data import DataError, ReadOptions, cutting
from conclave.data.__main__ import main
from conclave.data.cutting import pieces_of
from conclave.data.inputs import list_inputs
from conclave.data.left_out import LeftOut


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer of 300 tokens, trained by the program on text of its own."""
    folder = tmp_path_factory.mktemp("tokenizer")
    corpus = folder / "corpus.txt"
    corpus.write_text(inspect.getsource(inspect), encoding="utf-8")
    assert (
        main(["train-tokenizer", str(corpus), "--vocab-size", "300", "--output", str(folder / "tokenizer.json")]) == 0
    )
    return folder


def test_every_kind_of_input_comes_back_as_it_was(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Oracle: the texts as written, in the order of the inputs and, in a folder, of the paths.

    Line ends, umlauts, a spelled special token and white space must survive.
    """
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.py").write_bytes(b"def f():\r\n\treturn 1\r\n")
    (folder / "a.txt").write_text("  the cät \U0001f408 sat\n\n", encoding="utf-8")
    (folder / "sub" / "c.jsonl").write_text(
        json.dumps({"text": f"one {END} two"}) + "\n\n" + json.dumps({"text": "three\nfour"}), encoding="utf-8"
    )
    (folder / "ignored.dat").write_text("not read")
    single = tmp_path / "single.txt"
    single.write_text("alone", encoding="utf-8")
    prefix = tmp_path / "out" / "set"
    assert main(["build", str(single), str(folder), "--tokenizer", str(tokenizer_folder), "--output", str(prefix)]) == 0
    assert decoded(tokenizer_folder, read_pair(prefix)) == [
        "alone",
        "  the cät \U0001f408 sat\n\n",
        "def f():\r\n\treturn 1\r\n",
        f"one {END} two",
        "three\nfour",
    ]
    assert sorted(os.listdir(prefix.parent)) == ["set.bin", "set.idx"]  # nothing temporary is left


def test_the_last_documents_are_held_back(tmp_path: Path, tokenizer_folder: Path) -> None:
    source = tmp_path / "lines.jsonl"
    texts = [f"document {number} of the cat" for number in range(40)]
    source.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts), encoding="utf-8")
    prefix = tmp_path / "set"
    command = ["build", str(source), "--json-key", "body", "--tokenizer", str(tokenizer_folder / "tokenizer.json")]
    assert main([*command, "--output", str(prefix), "--validation-fraction", "0.05"]) == 0
    assert decoded(tokenizer_folder, read_pair(tmp_path / "set-train")) == texts[:38]
    assert decoded(tokenizer_folder, read_pair(tmp_path / "set-validation")) == texts[38:]
    assert not prefix.with_suffix(".idx").exists()


def test_the_number_of_workers_does_not_change_the_files(tmp_path: Path, tokenizer_folder: Path) -> None:
    """3 MB of text make several tasks; three real processes against none. Seed 11."""
    generator = random.Random(11)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(300):
        words = generator.choices(["the", "cat", "sat", "zebra", "on", "\n", "αβγ"], k=generator.randrange(1, 5000))
        (folder / f"{number}.txt").write_text(" ".join(words), encoding="utf-8")
    written = []
    for workers in ("1", "3"):
        prefix = tmp_path / f"by-{workers}"
        command = [
            "build",
            str(folder),
            "--tokenizer",
            str(tokenizer_folder),
            "--output",
            str(prefix),
            "--workers",
            workers,
        ]
        subprocess.run([sys.executable, "-m", "conclave.data", *command], check=True)
        written.append((Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()))
    assert len(written[0][0]) > 100_000
    assert written[0] == written[1]


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_where_a_file_is_cut_does_not_matter(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the list of texts. Cut after every possible number of bytes."""
    texts = ["a", "bb\ncc", "x" * 30, "ü", "last"]
    source = tmp_path / f"source.{kind}"
    if kind == "jsonl":
        source.write_text(
            "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8"
        )
        expected = texts
    else:
        source.write_text("\n\n" + "\n \n\n".join(text + "\n" for text in texts), encoding="utf-8")
        expected = [text + "\n" for text in texts]
    options = ReadOptions(split_on_blank_lines=True)
    for cut in range(1, source.stat().st_size + 2):
        monkeypatch.setattr(cutting, "PIECE_BYTES", cut)
        left_out = LeftOut()
        pieces = pieces_of(list_inputs([str(source)], options), options)
        assert [text for piece in pieces for text, _ in piece.documents(left_out)] == expected, cut
        assert left_out == LeftOut()


def test_undecodable_and_empty_documents_are_skipped_and_counted(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xff\xfe broken")
    (folder / "b.txt").write_text("  \n")
    (folder / "c.txt").write_text("")
    (folder / "d.jsonl").write_bytes(b'{"text": "good"}\n{"text": "\xff"}\n{"text": ""}\n')
    assert main(["build", str(folder), "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "set")]) == 0
    assert decoded(tokenizer_folder, read_pair(tmp_path / "set")) == ["good"]
    told = capsys.readouterr().out
    assert "skipped 3 empty documents" in told
    assert "left out 2 documents: not UTF-8" in told
    assert f"{folder / 'a.txt'}, line 1 (byte 0): it begins as UTF-16 does\n" in told or f"{folder / 'a.txt'}, line 1 (byte 0)\n" in told
    assert f"{folder / 'd.jsonl'}, line 2 (byte 27)\n" in told


@pytest.mark.parametrize(("words", "dtype"), [(65498, np.uint16), (65499, np.int32)])
def test_ids_take_16_bits_below_a_vocabulary_of_65500(tmp_path: Path, words: int, dtype: type) -> None:
    folder = tokenizer_of_words(tmp_path / "tokenizer", words)
    source = tmp_path / "source.txt"
    source.write_text(f"w1 w{words - 1} w2 w3 w4 w5", encoding="utf-8")
    assert main(["build", str(source), "--tokenizer", str(folder), "--output", str(tmp_path / "set")]) == 0
    assert read_pair(tmp_path / "set") == [[1, words - 1, 2, 3, 4, 5, words]]
    assert (tmp_path / "set.bin").stat().st_size == 7 * np.dtype(dtype).itemsize


def test_which_token_ends_a_document(tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    source.write_text("w1 w2", encoding="utf-8")
    configured = tokenizer_of_words(tmp_path / "configured", 9, {"eos_token": {"content": "w7"}})

    def ids(*arguments: str) -> list[list[int]]:
        command = ["build", str(source), "--tokenizer", str(configured), "--output", str(tmp_path / "set"), "--overwrite"]
        assert main([*command, *arguments]) == 0
        return read_pair(tmp_path / "set")

    assert ids() == [[1, 2, 7]]
    assert ids("--eos-token", "w3") == [[1, 2, 3]]
    assert ids("--no-append-eos") == [[1, 2]]
    (configured / "tokenizer_config.json").unlink()
    assert ids() == [[1, 2, 9]]  # the well-known name


def test_a_trained_tokenizer_is_reproducible_and_loads_in_transformers(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Oracle: Transformers' own tokenization, and byte-exact decoding of text that was never seen in training."""
    corpus = tokenizer_folder / "corpus.txt"
    again = tmp_path / "again" / "tokenizer.json"
    command = ["train-tokenizer", str(corpus), "--vocab-size", "300", "--output", str(again)]
    # A process of its own, hence another hash seed.
    subprocess.run([sys.executable, "-m", "conclave.data", *command], check=True)
    assert again.read_bytes() == (tokenizer_folder / "tokenizer.json").read_bytes()

    own = Tokenizer.from_file(str(again))
    assert own.token_to_id(END) == 0
    assert own.get_vocab_size() == 300
    text = "the cat, \x00 żółw 猫\t\r\n  ran"
    assert own.decode(own.encode(text).ids) == text

    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(str(again.parent))
    assert loaded.encode(text) == own.encode(text).ids
    assert loaded.eos_token_id == 0
    assert loaded.decode(loaded.encode(text)) == text


def test_the_standard_library_is_an_input(tmp_path: Path) -> None:
    """Oracle: modules that every Python 3.11 has, and what must not be among them."""
    found = list_inputs(["stdlib"], ReadOptions())
    names = [file.path.as_posix() for file in found.files]
    assert found.bytes > 5_000_000
    for module in ("/argparse.py", "/json/decoder.py", "/asyncio/base_events.py"):
        assert sum(name.endswith(module) for name in names) == 1
    for foreign in ("site-packages", "/test/", "/idle_test/", "/encodings/", "_sysconfigdata"):
        assert not any(foreign in name for name in names)
    assert found == list_inputs(["stdlib"], ReadOptions())
    # The last twentieth is a fair sample: its files begin with many different letters.
    assert len({Path(name).name[0] for name in names[-len(names) // 20 :]}) > 8


@pytest.mark.parametrize("order", ["path", "hash"])
def test_the_order_of_a_folder_does_not_depend_on_where_it_is(tmp_path: Path, order: str) -> None:
    orders = []
    for parent in ("here", "somewhere/else"):
        folder = tmp_path / parent
        folder.mkdir(parents=True)
        for number in random.Random(parent).sample(range(30), 30):
            (folder / f"{number:02}.txt").write_text(str(number))
        orders.append([file.path.name for file in list_inputs([str(folder)], ReadOptions(order=order)).files])
    assert orders[0] == orders[1]
    assert (orders[0] == sorted(orders[0])) == (order == "path")


@pytest.mark.parametrize(
    ("files", "arguments", "told"),
    [
        ({}, ["absent.txt"], "absent.txt does not exist"),
        ({"a.pdf": "x"}, ["a.pdf"], "files with suffix '.pdf' are not read"),
        ({"empty/a.pdf": "x"}, ["empty"], "no documents in empty"),
        ({"a.txt": " "}, ["a.txt"], "no text in a.txt: 1 empty"),
        (
            {"a.jsonl": '{"text": "x"}\n{"body": "y"}\n'},
            ["a.jsonl", "--strict"],
            "a.jsonl, line 2 (byte 14): no key 'text': its keys are 'body'",
        ),
        ({"a.jsonl": "[1]\n"}, ["a.jsonl"], "no text in a.jsonl: 1 left out (no JSON object), 0 empty"),
        ({"a.jsonl": '{"text": 3}\n'}, ["a.jsonl", "--strict"], "neither a text nor a list of token ids under 'text': it is a number"),
        ({"a.jsonl": '{"text": "x"\n'}, ["a.jsonl", "--strict"], "a.jsonl, line 1 (byte 0): not JSON"),
        ({"a.txt": "x"}, ["a.txt", "--eos-token", "</none>"], "--eos-token '</none>' is not in the vocabulary"),
        ({"a.txt": "x"}, ["a.txt", "--validation-fraction", "1.5"], "--validation-fraction 1.5 is not in [0, 1)"),
        ({"a.txt": "x"}, ["a.txt", "--validation-fraction", "0.05"], "of 1 documents leaves none to train on"),
        ({"a.txt": "x"}, ["a.txt", "--tokenizer", "nothing.json"], "nothing.json does not exist"),
        ({"a.txt": "x", "bad.json": "{}"}, ["a.txt", "--tokenizer", "bad.json"], "bad.json is no tokenizer"),
    ],
)
def test_mistakes_are_refused_with_exit_code_2_and_nothing_written(
    files: dict[str, str],
    arguments: list[str],
    told: str,
    tmp_path: Path,
    tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")
    (tmp_path / "out").mkdir()
    assert main(["build", "--tokenizer", str(tokenizer_folder), "--output", "out/set", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("error: ") and error.count("error: ") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_a_mistake_found_by_a_worker_process_is_told_the_same_way(tmp_path: Path, tokenizer_folder: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "' + "x" * 5_000_000 + '"}\n{"body": "y"}\n')
    command = [
        "build",
        str(source),
        str(source),
        "--tokenizer",
        str(tokenizer_folder),
        "--output",
        str(tmp_path / "set"),
        "--workers",
        "2",
        "--strict",
    ]
    done = subprocess.run([sys.executable, "-m", "conclave.data", *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: ") and "Traceback" not in done.stderr
    assert "line 2 (byte 5000013): no key 'text'" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_mistakes_of_train_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.txt"
    source.write_text("x")
    assert (
        main(["train-tokenizer", str(source), "--vocab-size", "256", "--output", str(tmp_path / "tokenizer.json")]) == 2
    )
    assert "--vocab-size 256 is too small" in capsys.readouterr().err
    assert main(["train-tokenizer", str(source), "--output", str(tmp_path / "other.json")]) == 2
    assert "must be named tokenizer.json" in capsys.readouterr().err
    with pytest.raises(DataError):
        list_inputs([str(tmp_path / "absent")], ReadOptions())


def test_a_failed_build_leaves_the_old_set_alone(tmp_path: Path, tokenizer_folder: Path) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.jsonl"
    good.write_text("the cat")
    bad.write_text('{"text": "fine"}\nnot json\n')
    command = ["build", "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "set")]
    assert main([*command, str(good)]) == 0
    assert main([*command, str(good), str(bad), "--overwrite", "--strict"]) == 2
    assert decoded(tokenizer_folder, read_pair(tmp_path / "set")) == ["the cat"]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".idx", ".jsonl", ".txt"]


def test_a_script_from_standard_input_can_build(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Worker processes do not run it again."""
    (tmp_path / "a.txt").write_text("the cat")
    script = (
        "from pathlib import Path\nfrom conclave.data import build\n"
        f"print(build([{str(tmp_path / 'a.txt')!r}], Path({str(tokenizer_folder)!r}), Path({str(tmp_path / 'set')!r})).sets)"
    )
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("set") == 1
    assert decoded(tokenizer_folder, read_pair(tmp_path / "set")) == ["the cat"]

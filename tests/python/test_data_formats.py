"""The formats that the builder reads, and those that it refuses: a data set is never silently another one.

Oracle: the documents as written, by the libraries that own the formats.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conclave.data import ReadOptions, json_stream, tables
from conclave.data.__main__ import main
from conclave.data.cutting import pieces_of, tasks_of
from conclave.data.inputs import list_inputs
from conclave.data.left_out import LeftOut
from token_files import END, TEXTS, array_of, built, lines_of, read_pair, write_arrow, write_gz, write_parquet, write_zst

WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(lines_of(TEXTS)),
    "a.ndjson": lambda path: path.write_bytes(lines_of(TEXTS)),
    "a.JSONL": lambda path: path.write_bytes(b"\xef\xbb\xbf" + lines_of(TEXTS)),
    "a.jsonl.gz": lambda path: write_gz(path, lines_of(TEXTS)),
    "a.Jsonl.GZ": lambda path: write_gz(path, lines_of(TEXTS)),
    "a.jsonl.zst": lambda path: write_zst(path, lines_of(TEXTS)),
    "a.json": lambda path: path.write_bytes(array_of(TEXTS)),
    "b.json": lambda path: path.write_bytes(lines_of(TEXTS)),
    "c.json": lambda path: path.write_bytes(b"\xef\xbb\xbf\n  " + array_of(TEXTS) + b"\n\n"),
    "a.json.gz": lambda path: write_gz(path, array_of(TEXTS)),
    "a.v1.json.zst": lambda path: write_zst(path, array_of(TEXTS)),
    "a.parquet": lambda path: write_parquet(path, TEXTS),
    "A.PARQUET": lambda path: write_parquet(path, TEXTS),
    "a.arrow": lambda path: write_arrow(path, TEXTS),
    "b.arrow": lambda path: write_arrow(path, TEXTS, as_file=True, large=True),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("small", [False, True])
def test_a_format_is_read_beside_a_text(name: str, small: bool, tmp_path: Path, tokenizer: Path, build: Callable[..., str],
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """`small`: blocks of a few bytes, so that documents lie over the ends of many."""
    if small:
        monkeypatch.setattr(json_stream, "_BLOCK", 7)
        monkeypatch.setattr(json_stream, "_COMPRESSED_BLOCK", 3)
        monkeypatch.setattr(json_stream, "PIECE_BYTES", 50)
        monkeypatch.setattr(tables, "PIECE_BYTES", 50)
        monkeypatch.setattr(tables, "_ROWS", 2)
    folder = tmp_path / "folder"
    folder.mkdir()
    WRITERS[name](folder / name)
    (folder / "zz.TXT").write_text("a text")
    told = build(folder)
    assert built(tmp_path, tokenizer) == [*TEXTS, "a text"]
    assert "reading 2 files" in told and f"1 {'.'.join(['', *name.lower().split('.')[1:]]).removeprefix('.v1')}" in told
    build(folder / name)
    assert built(tmp_path, tokenizer) == TEXTS


def test_memory_is_bounded_whatever_a_stream_grows_to(tmp_path: Path) -> None:
    """50 MB of one line, of which 60 KB are left when it is compressed: a task holds little more than a megabyte."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps({"text": "x" * 1000}) + "\n").encode() * 50_000))
    assert path.stat().st_size < 200_000
    options = ReadOptions()
    tasks = [[piece.documents(LeftOut()) for piece in task] for task in tasks_of(pieces_of(list_inputs([str(path)], options), options))]
    counts = [sum(1 for documents in task for _ in documents) for task in tasks]
    assert sum(counts) == 50_000 and max(counts) < 1200


@pytest.mark.parametrize("name", ["a.csv", "a.txt.gz", "a.jsonl.bz2", "a.tar.gz", "A.ZIP", "a.xlsx", "a.npy", "a.parquet.gz"])
def test_data_that_cannot_be_read_is_refused(name: str, tmp_path: Path, tokenizer: Path, build: Callable[..., str]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_text("text,label\n")
    (folder / "README.txt").write_text("what lies here")
    suffix = "." + name.lower().split(".", 1)[1]
    assert build(folder).startswith(f"2 error: {folder} holds files that look like data and cannot be read: 1 {suffix}. ")
    assert not (tmp_path / "out/set.bin").exists()
    assert build(folder / name).startswith("2 error: ")
    assert "1 file that --ignore names" in build(folder, "--ignore", suffix)
    assert built(tmp_path, tokenizer) == ["what lies here"]


@pytest.mark.parametrize("suffix", [".JSONL", "json", ".parquet", ".jsonl.gz", ".csv", ".zip"])
def test_data_is_not_read_as_text(suffix: str, tmp_path: Path, build: Callable[..., str]) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert build(tmp_path / "a.txt", "--suffix", suffix).startswith(f"2 error: --suffix {suffix}: these files are ")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl.gz", gzip.compress(lines_of(TEXTS))[:-9], "is cut: its .gz data does not end"),
        ("a.jsonl.gz", b"\x1f\x8b" + bytes(100), "is damaged"),
        ("a.jsonl.gz", lines_of(TEXTS), "is damaged"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"\xff" * 50, "is damaged"),
        ("a.json", b'{\n  "data": [\n    {"text": "x"}\n  ]\n}', "holds neither an array of documents nor one document a line"),
        ("a.json", b'"text"', "holds neither an array of documents nor one document a line"),
        ("a.parquet", b"PAR1" + bytes(100), "is no Parquet file, or damaged"),
        ("a.parquet", b"", "is no Parquet file, or damaged"),
        ("a.arrow", b"\xff" * 100, "is no Arrow file, or it is cut"),
        ("a.arrow", b"ARROW1\0\0" + bytes(100), "is no Arrow file, or damaged"),
    ],
)
def test_a_damaged_file_is_refused_whole(name: str, content: bytes, told: str, tmp_path: Path, build: Callable[..., str]) -> None:
    pytest.importorskip("zstandard"), pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("good")
    said = build(tmp_path / "good.txt", tmp_path / name)
    assert said.startswith(f"2 error: {tmp_path / name} ") and told in said and "Traceback" not in said
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet", "a.arrow", "b.arrow"])
def test_a_file_cut_anywhere_is_refused(name: str, tmp_path: Path, build: Callable[..., str]) -> None:
    WRITERS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for part in range(1, 8):
        (tmp_path / name).write_bytes(whole[: len(whole) * part // 8])
        assert build(tmp_path / name).startswith("2 error: "), part


def test_tables_without_the_column(tmp_path: Path, build: Callable[..., str]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"content": ["x"], "n": [1.5]}), tmp_path / "a.parquet")
    assert "has no column 'text'; its columns are 'content', 'n'" in build(tmp_path / "a.parquet")
    assert "the column 'n' holds double, neither texts nor lists" in build(tmp_path / "a.parquet", "--json-key", "n")


@pytest.mark.parametrize(("package", "name"), [("zstandard", "a.jsonl.zst"), ("pyarrow", "a.parquet"), ("pyarrow", "a.arrow")])
def test_a_package_that_is_missing_is_asked_for_by_name(package: str, name: str, tmp_path: Path, tokenizer: Path) -> None:
    WRITERS[name](tmp_path / name)
    script = f"import sys; sys.modules[{package!r}] = None; from conclave.data.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", script, "build", str(tmp_path / name), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "set")],
                          capture_output=True, text=True)
    assert done.returncode == 2 and f"needs the Python package {package}: pip install {package}" in done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


IDS = [[1, 2, 3], [250, 0], list(range(200))]


def write_ids(path: Path, ids: list[list[int]]) -> None:
    if path.suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"input_ids": ids, "attention_mask": [[1] * len(each) for each in ids]}), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps([{"input_ids": each} for each in ids]))
    else:
        write_gz(path, "".join(json.dumps({"input_ids": each, "attention_mask": [1] * len(each)}) + "\n" for each in ids).encode())


@pytest.mark.parametrize("name", ["ids.json.gz", "ids.jsonl.gz", "ids.json", "ids.parquet"])
def test_documents_of_token_ids(name: str, tmp_path: Path, tokenizer: Path, build: Callable[..., str]) -> None:
    """They are taken as they are; a token before or behind them is asked for."""
    path, output = tmp_path / name, tmp_path / "out/set"
    write_ids(path, IDS)
    build(path, "--json-key", "input_ids")
    assert read_pair(output) == IDS
    build(path, "--json-key", "input_ids", "--append-eos", "--bos-token", END)
    assert read_pair(output) == [[256, *ids, 256] for ids in IDS]
    command = ["build", str(path), "--json-key", "input_ids", "--output", str(output), "--overwrite"]
    assert main([*command, "--vocab-size", "70000"]) == 0
    assert read_pair(output) == IDS and output.with_suffix(".bin").stat().st_size == 4 * 205
    assert main([*command]) == 2
    assert main([*command, "--vocab-size", "1000000000000"]) == 2
    assert main([*command, "--vocab-size", "300", "--append-eos"]) == 2


@pytest.mark.parametrize("bad", [[1, 300], [-1], [2**63], [2**70], [1.5], [True], ["1"], [[1]], [None]])
def test_ids_that_are_none_are_left_out(bad: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"input_ids": [1, 2]}) + "\n" + json.dumps({"input_ids": bad}) + "\n" + json.dumps({"input_ids": []}))
    command = ["build", str(tmp_path / "a.jsonl"), "--json-key", "input_ids", "--vocab-size", "300", "--output", str(tmp_path / "set")]
    assert main(command) == 0
    assert read_pair(tmp_path / "set") == [[1, 2]]
    told = capsys.readouterr().out
    assert "left out 1 document: " in told and "a.jsonl, line 2 (byte 22)" in told and "skipped 1 empty documents" in told


def test_a_text_among_ids_asks_for_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert main(["build", str(tmp_path / "a.txt"), "--vocab-size", "300", "--output", str(tmp_path / "set")]) == 2
    assert f"{tmp_path / 'a.txt'} holds a text: give the tokenizer" in capsys.readouterr().err


def test_a_token_before_each_document(tmp_path: Path, tokenizer: Path, build: Callable[..., str]) -> None:
    """Oracle: Transformers, with the same token in front."""
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b" * 1_200_000)  # long, encoded in parts
    assert "has no token that begins a text. --bos-token names one" in build(tmp_path / "a.txt", "--prepend-bos")
    config = tokenizer / "tokenizer_config.json"
    config.write_text(json.dumps({"bos_token": {"content": END}}))
    try:
        told = build(tmp_path / "a.txt", tmp_path / "b.txt", "--prepend-bos", "--no-append-eos")
    finally:
        config.unlink()
    documents = read_pair(tmp_path / "out/set")
    assert f"each document begins with {END}" in told
    assert [len(document) for document in documents] == [2, 1_200_001] and all(document[0] == 256 and 256 not in document[1:] for document in documents)

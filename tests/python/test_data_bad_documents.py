"""A document that cannot be used is left out, counted and named; the others are built. `--strict` ends with it instead.

Oracle: the documents as written, and where they were written.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conclave.data import cutting
from conclave.data.__main__ import main
from token_files import decoded, read_pair


GOOD = ['{"text": "good one"}', '{"text": "good \\ud83d\\ude00 pair"}', '{"text": "good three"}']
GOOD_TEXTS = ["good one", "good 😀 pair", "good three"]

BAD = {
    "half a pair": (rb'{"text": "cut \ud83d here"}', "half a surrogate pair"),
    "the other half": (rb'{"text": "\ude00"}', "half a surrogate pair"),
    "halves in the wrong order": (rb'{"text": "\ude00\ud83d"}', "half a surrogate pair"),
    "null": (b'{"text": null}', "null under 'text'"),
    "cut line": (b'{"text": "cut he', "not JSON"),
    "cut in an escape": (b'{"text": "cut \\u12', "not JSON"),
    "NULs": (b"\0" * 500, "holds bytes of value 0"),
    "a NUL in a text": (b'{"text": "a\0b"}', "not JSON"),
    "5,000 digits": (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "a number of more than 4,300 digits"),
    "as the text": (b'{"text": ' + b"9" * 5000 + b"}", "a number of more than 4,300 digits"),
    "1e999": (b'{"text": 1e999}', "neither a text nor a list of token ids under 'text'"),
    "100,000 deep": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
    "deep in objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
    "deep and cut": (b"[" * 100_000, "nested too deep"),
    "object": (b'{"text": {"en": "x"}}', "neither a text nor a list of token ids under 'text'"),
    "list of texts": (b'{"text": ["a", "b"]}', "the list under 'text' holds no token ids"),
    "boolean": (b'{"text": true}', "neither a text nor a list of token ids under 'text'"),
    "another key": (b'{"Text": "x"}', "no key 'text'"),
    "no object": (b'["text"]', "no JSON object"),
    "no JSON": (b"plain words", "not JSON"),
    "not UTF-8": (b'{"text": "caf\xe9"}', "not UTF-8"),
    "UTF-16": ('{"text": "x"}'.encode("utf-16"), "not UTF-8"),
    "half a pair in bytes": (b'{"text": "\xed\xa0\xbd"}', "not UTF-8"),
    "escape sequence in a key": (b'{"\\u001b[31m": 1}', "no key 'text'"),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_left_out(name: str, last: bool, tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the middle of a file, or as the last line without its end."""
    bad, reason = BAD[name]
    good = [line.encode() for line in GOOD]
    lines = [*good, bad] if last else [good[0], bad, *good[1:]]
    source = tmp_path / "a.jsonl"
    source.write_bytes(b"\n".join(lines))
    place = f"{source}, line {4 if last else 2} (byte "
    command = ["build", str(source), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "out/set")]
    assert main([*command, "--strict"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {place}") and reason in error and error.count("error: ") == 1 and "\x1b" not in error
    byte = int(error.removeprefix(f"error: {place}").split(")")[0])
    begin = sum(len(line) + 1 for line in lines[: 3 if last else 1])
    assert begin <= byte <= begin + len(bad)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True
    assert main(command) == 0
    told = capsys.readouterr().out
    assert decoded(tokenizer, read_pair(tmp_path / "out/set")) == GOOD_TEXTS
    assert f"left out 1 document: {reason}" in told and f"  {place}" in told and "\x1b" not in told


@pytest.mark.parametrize("name", [name for name in BAD if name not in ("NULs", "deep and cut", "cut line", "cut in an escape")])
def test_a_bad_element_of_an_array_is_left_out(name: str, tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, reason = BAD[name]
    if name == "UTF-16":
        bad, reason = b'{"text": "\xff\xfe"}', "not UTF-8"
    source = tmp_path / "a.json"
    source.write_bytes(b"[" + GOOD[0].encode() + b",\n" + bad + b",\n" + ",".join(GOOD[1:]).encode() + b"]")
    assert main(["build", str(source), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "set")]) == 0
    told = capsys.readouterr().out
    assert decoded(tokenizer, read_pair(tmp_path / "set")) == GOOD_TEXTS
    assert f"left out 1 document: {reason}" in told and f"{source}, line 2 (byte " in told


@pytest.mark.parametrize(("content", "told"), [
    (b'[\n{"text": "one"},\n{"text": "tw', "is cut: its array does not end"),
    (b'[\n{"text": "one"},\n{"text": "two"}', "is cut: its array does not end"),
    (b'[', "is cut: its array does not end"),
    (b'[\n{"text": "one"}]\n{"text": "behind"}', "goes on behind its array, at byte 18"),
    (b'[{"text": "one"}][{"text": "two"}]', "goes on behind its array, at byte 17"),
])
def test_an_array_that_is_not_whole_is_refused(content: bytes, told: str, tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert main(["build", str(tmp_path / "a.json"), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "set")]) == 2
    assert f"error: {tmp_path / 'a.json'} {told}" in capsys.readouterr().err


def test_commas_without_a_document_between_them(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_bytes(b'[\n{"text": "one"},\n,\n{"text": "two"},\n]')
    assert main(["build", str(tmp_path / "a.json"), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "set")]) == 0
    assert decoded(tokenizer, read_pair(tmp_path / "set")) == ["one", "two"]
    assert f"left out 1 document: not JSON\n  {tmp_path / 'a.json'}, line 3 (byte 19): nothing stands here" in capsys.readouterr().out


def test_reports_count_all_and_show_the_first(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are counted over all pieces of the file, in the order of the file."""
    monkeypatch.setattr(cutting, "PIECE_BYTES", 300)
    source = tmp_path / "a.jsonl"
    source.write_text("".join(f'{{"text": {"null" if number % 3 else json.dumps("good " * 9)}}}\n' for number in range(300)))
    assert main(["build", str(source), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "set"), "--workers", "2"]) == 0
    told = capsys.readouterr().out.splitlines()
    at = told.index("left out 200 documents: null under 'text'")
    assert [line.split(" (byte")[0] for line in told[at + 1 : at + 6]] == [f"  {source}, line {line}" for line in (2, 3, 5, 6, 8)]
    assert told[at + 6] == "  and 195 more"
    assert len(read_pair(tmp_path / "set")) == 100


@pytest.mark.parametrize(("content", "told"), [
    (b"caf\xe9 au lait", "left out 1 document: not UTF-8\n  {}, line 1 (byte 3)"),
    ("text".encode("utf-16"), "left out 1 document: not UTF-8\n  {}, line 1 (byte 0): it begins as UTF-16 does"),
    (b"line\nno\0text", "left out 1 document: holds bytes of value 0, which no text file does\n  {}, line 2 (byte 7)"),
    (b"\0" * 4096, "left out 1 document: holds bytes of value 0, which no text file does\n  {}, line 1 (byte 0)"),
    (b"\xef\xbb\xbf \n", "skipped 1 empty documents"),
])
def test_a_file_that_is_no_text_is_left_out(content: bytes, told: str, tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt").write_text("good")
    assert main(["build", str(tmp_path), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "out/set")]) == 0
    assert told.format(tmp_path / "a.txt") in capsys.readouterr().out
    assert decoded(tokenizer, read_pair(tmp_path / "out/set")) == ["good"]


@pytest.mark.parametrize("workers", ["1", "3"])
def test_the_first_bad_document_ends_a_strict_build(workers: str, tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever is found first: a long text is looked at before the documents in front of it are tokenized."""
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' * 100_000 + '{"text": null}\n')
    (tmp_path / "b.txt").write_bytes(b"words " * 500_000 + b"\xff")
    command = ["build", str(tmp_path), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "out/set"), "--workers", workers]
    assert main([*command, "--strict"]) == 2
    assert f"error: {tmp_path / 'a.jsonl'}, line 100001 (byte 1700000): null" in capsys.readouterr().err
    assert main(command) == 0
    told = capsys.readouterr().out
    assert told.index("null under 'text'") < told.index("not UTF-8") and f"{tmp_path / 'b.txt'}, line 1 (byte 3000000)" in told


def test_a_byte_order_mark_is_no_text(tmp_path: Path, tokenizer: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.txt").write_bytes(mark + b"text")
    (tmp_path / "b.jsonl").write_bytes(mark + GOOD[0].encode() + b"\n" + mark + GOOD[2].encode())
    (tmp_path / "c.txt").write_bytes("in the \ufeffmiddle".encode())
    assert main(["build", str(tmp_path), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "out/set")]) == 0
    assert decoded(tokenizer, read_pair(tmp_path / "out/set")) == ["text", "good one", "good three", "in the \ufeffmiddle"]


def test_bad_values_of_a_table(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    raw = arrow.array([b"good", b"caf\xe9", None, b""], arrow.binary())
    texts = arrow.Array.from_buffers(arrow.string(), len(raw), raw.buffers(), raw.null_count)
    parquet.write_table(arrow.table({"text": texts}), tmp_path / "a.parquet")
    command = ["build", str(tmp_path / "a.parquet"), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "set")]
    assert main([*command, "--strict"]) == 2
    assert "a.parquet, row 1: not UTF-8" in capsys.readouterr().err
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "a.parquet, row 1: from byte 3 of the value" in told and "a.parquet, row 2\n" in told and "skipped 1 empty documents" in told
    assert decoded(tokenizer, read_pair(tmp_path / "set")) == ["good"]
    parquet.write_table(arrow.table({"input_ids": [[1], [None], None, [400]]}), tmp_path / "b.parquet")
    command = ["build", str(tmp_path / "b.parquet"), "--json-key", "input_ids", "--vocab-size", "300", "--output", str(tmp_path / "set"), "--overwrite"]
    assert main(command) == 0
    assert read_pair(tmp_path / "set") == [[1]] and "row 3" in capsys.readouterr().out


def test_a_tokenizer_is_trained_on_what_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join([*GOOD, '{"text": null}', '{"text": [1, 2]}']))
    command = ["train-tokenizer", str(tmp_path / "a.jsonl"), "--vocab-size", "260", "--output", str(tmp_path / "tokenizer.json")]
    assert main([*command, "--strict"]) == 2 and not (tmp_path / "tokenizer.json").exists()
    assert main(command) == 0
    told = capsys.readouterr().out
    assert f"from 3 documents of {sum(map(len, GOOD_TEXTS))} characters" in told and "left out 1 document: null under 'text'" in told
    assert "left out 1 document: token ids, of which no tokenizer is made" in told

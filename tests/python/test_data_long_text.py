"""Long texts are encoded in parts: the ids are those of the whole text, and memory does not grow with it.

Oracle: the `tokenizers` library, given the whole text at once.
"""

from __future__ import annotations

import inspect
import json
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conclave.data import long_text
from conclave.data.__main__ import main
from conclave.data.long_text import TextInMemory, encode_long, parts_of
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from token_files import byte_tokenizer, read_pair

CORPUS = inspect.getsource(inspect) + inspect.getsource(textwrap) + "żółw и кот, 猫は眠る。" * 50
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def byte_level(pre: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    return trained(tokenizer, trainers.BpeTrainer(vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))


def gpt_2() -> Tokenizer:
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def prefixed() -> Tokenizer:
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))


def llama_3() -> Tokenizer:
    return byte_level(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))


def mixtral() -> Tokenizer:
    """Its parts: a space put in front of each text, no pre-tokenizer, bytes for what the vocabulary does not know."""
    bytes_there = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for the training: no merge over words
    trained(tokenizer, trainers.BpeTrainer(vocab_size=1200, special_tokens=["<unk>", *bytes_there], show_progress=False))
    tokenizer.pre_tokenizer = None
    return tokenizer


def over_words() -> Tokenizer:
    """BPE without a pre-tokenizer, whose merges go over words and lines."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    return trained(tokenizer, trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>"], max_token_length=12, show_progress=False))


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return trained(tokenizer, trainers.UnigramTrainer(vocab_size=400, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False))


def bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trained(tokenizer, trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]"], show_progress=False))


def stripping() -> Tokenizer:
    tokenizer = gpt_2()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")])
    return tokenizer


def with_added_tokens() -> Tokenizer:
    """Tokens that are looked for in the text itself, over lines and words, and take the space around them."""
    tokenizer = gpt_2()
    tokenizer.add_tokens([AddedToken("):\n    ", normalized=False), AddedToken("self", lstrip=True, rstrip=True)])
    return tokenizer


def looking_far_ahead() -> Tokenizer:
    """A line feed ends a token only if the word END follows somewhere."""
    tokenizer = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?m:\n(?=.*END))"), "isolated")
    return tokenizer


class Encoder:
    """The library, counting how often it is asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.asked = 0

    def encode(self, text: str) -> np.ndarray:
        self.asked += 1
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def encode_with_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.uint32), np.array(encoding.offsets).reshape(-1, 2)


def assert_same_ids(text: str, encoder: Encoder) -> int:
    """Returns the number of parts."""
    assert np.array_equal(np.concatenate(encode_long(TextInMemory(text), encoder)), encoder.encode(text))
    return len(parts_of(TextInMemory(text), encoder))


def many_kinds(seed: int) -> str:
    """Stretches of code, prose, runs of one letter, scripts without spaces, and white space of all kinds."""
    generator = random.Random(seed)
    makers: list[Callable[[], str]] = [
        lambda: CORPUS[(begin := generator.randrange(len(CORPUS))) : begin + generator.randrange(3000)],
        lambda: generator.choice(["a", "=", "7", "\n", " ", "猫", "\u0301"]) * generator.randrange(900),
        lambda: "".join(generator.choices("猫は眠る。速い、犬！", k=generator.randrange(400))),
        lambda: "".join(generator.choices([" ", "\n", "\r\n", "\t", "\u00a0", "x", ".", "12", "</s>", "<unk>"], k=200)),
        lambda: " ".join(generator.choices(["the", "cat's", "zebra", "1984", "e\u0301t\u00e9", "🐈‍⬛"], k=300)),
    ]
    return "".join(generator.choice(makers)() for _ in range(60))


@pytest.mark.parametrize("make", [gpt_2, prefixed, llama_3, mixtral, over_words, unigram, bert, stripping, with_added_tokens, looking_far_ahead])
def test_ids_are_those_of_the_whole_text(make: Callable[[], Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "PART_BYTES", 3000)
    monkeypatch.setattr(long_text, "_SEARCHED_BYTES", 1000)
    monkeypatch.setattr(long_text, "CONTEXTS", (100, 600))
    encoder = Encoder(make())
    parts = sum(assert_same_ids(many_kinds(seed), encoder) for seed in range(5))
    assert parts > 50 or make is looking_far_ahead
    assert_same_ids(CORPUS * 2, encoder)


@pytest.mark.parametrize("text", ["ACGT" * 5000, "x" * 20000, "\n" * 20000, "猫" * 9000, ("x" * 4000 + "\n") * 5])
def test_texts_without_places_for_a_cut(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "PART_BYTES", 3000)
    encoder = Encoder(gpt_2())
    assert_same_ids(text, encoder)
    assert encoder.asked < 400


def test_a_part_that_cannot_be_told_from_the_one_before_makes_the_text_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """END stands further behind the cuts than the stretches on which they are tried."""
    monkeypatch.setattr(long_text, "PART_BYTES", 3000)
    monkeypatch.setattr(long_text, "CONTEXTS", (100, 600))
    tokenizer = looking_far_ahead()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?m:\n(?!.*END))"), "isolated")
    encoder = Encoder(tokenizer)
    text = "word\n" * 2000 + "END"
    assert len(parts_of(TextInMemory(text), encoder)) > 1
    assert len(encode_long(TextInMemory(text), encoder)) == 1
    assert_same_ids(text, encoder)


def test_a_long_file_becomes_one_document(tmp_path: Path) -> None:
    """2.5 MB in a .txt, behind a byte order mark, and in a .jsonl, by two processes; the library's ids and one end token."""
    tokenizer = gpt_2()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = (CORPUS * (2_500_000 // len(CORPUS) + 1))[:2_500_000]
    (tmp_path / "a.txt").write_text(text, encoding="utf-8-sig", newline="")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": text}))
    (tmp_path / "c.txt").write_text("short")
    inputs = [str(tmp_path / name) for name in ("a.txt", "b.jsonl", "c.txt")]
    assert main(["build", *inputs, "--tokenizer", str(tmp_path), "--output", str(tmp_path / "set"), "--workers", "2"]) == 0
    end = [tokenizer.token_to_id("<|endoftext|>")]
    whole = tokenizer.encode(text, add_special_tokens=False).ids + end
    documents = read_pair(tmp_path / "set")
    assert documents[0] == whole and documents[1] == whole
    assert documents[2] == tokenizer.encode("short").ids + end and len(documents) == 3


def test_what_is_no_text_is_found_anywhere_in_a_long_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = byte_tokenizer(tmp_path / "tokenizer")
    good = b"words and words\n" * 100_000
    (tmp_path / "a.txt").write_bytes(good + b"\xe2\x82")  # a letter cut in two
    (tmp_path / "b.txt").write_bytes(good[:-1] + b"\0\n" + good)
    (tmp_path / "c.txt").write_bytes(b" \n" * 1_000_000)
    (tmp_path / "d.txt").write_bytes(b"good")
    inputs = [str(tmp_path / f"{name}.txt") for name in "abcd"]
    command = ["build", *inputs, "--tokenizer", str(folder), "--output", str(tmp_path / "set")]
    assert main([*command, "--strict"]) == 2
    assert f"a.txt, line 100001 (byte {len(good)}): not UTF-8" in capsys.readouterr().err
    assert main(command) == 0
    assert len(read_pair(tmp_path / "set")) == 1
    told = capsys.readouterr().out
    assert f"b.txt, line 100000 (byte {len(good) - 1})" in told and "skipped 1 empty documents" in told


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """The largest process over 8 MB and over 80 MB differ by less than 40 MB; a whole text took 2.1 GB for 8."""
    folder = byte_tokenizer(tmp_path / "tokenizer")
    peaks = []
    for megabytes in (8, 80):
        source = tmp_path / f"{megabytes}.txt"
        with open(source, "w") as file:
            while file.tell() < megabytes * 1_000_000:
                file.write(CORPUS)
        script = ("import resource, sys; from conclave.data.__main__ import main; assert main(sys.argv[1:]) == 0;"
                  "print(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))")
        done = subprocess.run([sys.executable, "-c", script, "build", str(source), "--tokenizer", str(folder), "--output", str(tmp_path / f"set{megabytes}")],
                              capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.splitlines()[-1]) / 1000)
    assert peaks[1] < peaks[0] + 40, peaks

"""Reading token files back, apart from the code that writes them; tokenizers and documents to write them with."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END = "<|endoftext|>"
TEXTS = ["one", "two\nlines and a żółw", 'quotes " and \\ and [brackets] {braces}, commas', "x" * 5000, "last"]


def read_pair(prefix: Path, masked: bool = False) -> list[list[int]]:
    """The documents of a pair, by the description of the format."""
    index = Path(f"{prefix}.idx").read_bytes()
    tokens = Path(f"{prefix}.bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, sequences, boundaries = struct.unpack_from("<QBQQ", index, 9)
    assert version == (2 if masked else 1) and Path(f"{prefix}.mask").exists() == masked
    letter, size = {8: ("H", 2), 4: ("i", 4)}[code]
    lengths = struct.unpack_from(f"<{sequences}i", index, 34)
    offsets = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
    limits = struct.unpack_from(f"<{boundaries}q", index, 34 + 12 * sequences)
    assert len(index) == 34 + 12 * sequences + 8 * boundaries
    assert limits == tuple(range(sequences + 1))
    assert offsets == tuple(size * sum(lengths[:s]) for s in range(sequences))
    assert len(tokens) == size * sum(lengths)
    return [list(struct.unpack_from(f"<{n}{letter}", tokens, o)) for n, o in zip(lengths, offsets, strict=True)]


def read_masks(prefix: Path) -> list[list[int]]:
    """Of each document of a masked set, which tokens are trained on, by the description of the format."""
    documents = read_pair(prefix, masked=True)
    mask, index, tokens = (Path(f"{prefix}.{name}").read_bytes() for name in ("mask", "idx", "bin"))
    version, count, trained, checksum = struct.unpack_from("<QQQQ", mask, 8)
    assert mask[:8] == b"CNCLMASK" and version == 1 and count == sum(map(len, documents)) == len(mask) - 40
    assert trained == sum(mask[40:]) and set(mask[40:]) <= {0, 1}
    size, block = len(tokens), 65536
    begins = [0] if size <= 64 * block else [(size - block) // 63 * number for number in range(63)] + [size - block]
    parts = b"".join(tokens[begin : size if len(begins) == 1 else begin + block] for begin in begins)
    assert checksum == zlib.crc32(index + struct.pack("<Q", size) + parts)
    ends = [sum(map(len, documents[: number + 1])) for number in range(len(documents))]
    return [list(mask[40 + end - len(document) : 40 + end]) for document, end in zip(documents, ends, strict=True)]


def byte_tokenizer(folder: Path) -> Path:
    """A tokenizer of the 256 bytes and END, made by hand: every text can be read back from its ids."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate([*letters, END])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def decoded(tokenizer_folder: Path, documents: list[list[int]]) -> list[str]:
    """The texts of documents that each end with the end-of-text token."""
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    assert all(document[-1] == end and end not in document[:-1] for document in documents)
    return [tokenizer.decode(document[:-1], skip_special_tokens=False) for document in documents]


def tokenizer_of_words(folder: Path, words: int, config: object = None, unknown: str | None = "w0") -> Path:
    """A tokenizer that knows the words w0, w1, ... and END as its last id."""
    folder.mkdir()
    vocabulary = {f"w{number}": number for number in range(words)} | {END: words}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown or "none"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.enable_truncation(3)  # a tokenizer.json often carries one; it must not cut documents
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def built(tmp_path: Path, tokenizer: Path) -> list[str]:
    """What the fixture `build` has written."""
    return decoded(tokenizer, read_pair(tmp_path / "out/set"))


def lines_of(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()


def array_of(texts: list[str]) -> bytes:
    return json.dumps([{"text": text, "meta": {"list": [1, [2, "]"]]}} for text in texts], indent=1).encode()


def write_gz(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content[:100]) + gzip.compress(content[100:]) + b"\0" * 512)  # two members and padding


def write_zst(path: Path, content: bytes) -> None:
    zstandard = pytest.importorskip("zstandard")
    compress = zstandard.ZstdCompressor().compress
    path.write_bytes(compress(content[:100]) + compress(content[100:]))  # two frames


def write_parquet(path: Path, texts: list[str]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"n": list(range(len(texts))), "text": texts}), path, row_group_size=2)


def write_arrow(path: Path, texts: list[str], as_file: bool = False, large: bool = False) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"text": arrow.array(texts, arrow.large_string() if large else arrow.string())})
    with (arrow.ipc.new_file if as_file else arrow.ipc.new_stream)(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)

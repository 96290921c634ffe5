"""Chats: `conclave.data build --chats`.

Oracle: Transformers' `apply_chat_template` with `return_assistant_tokens_mask`, called on the chats one by one, and a parser
of the files apart from the code that writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_cases import CALLING, CHATS, LLAMA, LLAMA_MARKED, MARKED, PLAIN, TOOL, by_transformers, write_lines
from conclave.data import indexed_writer
from token_files import read_masks, read_pair, write_gz


@pytest.mark.parametrize(("template", "marked"), [(MARKED, MARKED), (PLAIN, MARKED), (LLAMA_MARKED, LLAMA_MARKED), (LLAMA, LLAMA_MARKED)],
                         ids=["marked", "found", "llama marked", "llama found"])
def test_masks_are_those_of_transformers(template: str, marked: str, tmp_path: Path, chat_tokenizer: Path, chats: Callable[..., str]) -> None:
    """`marked`: the same template with its generation markers, which Transformers needs to give a mask."""
    used = [chat[-2:] if "INST" in template else chat for chat in CHATS]
    used = [chat for chat in used if "INST" not in template or chat[0]["role"] == "user"]
    told = chats(template, write_lines(tmp_path / "a.jsonl", [{"messages": chat, "id": 7} for chat in used]))
    expected = [by_transformers(chat_tokenizer, marked, chat) for chat in used]
    assert read_pair(tmp_path / "out", masked=True) == [ids for ids, _ in expected]
    # Where a letter is several tokens Transformers marks only the first of a turn's last letter: none of these ends so.
    assert read_masks(tmp_path / "out") == [mask for _, mask in expected]
    assert all(any(mask) and not all(mask) for _, mask in expected)
    trained = sum(sum(mask) for _, mask in expected)
    assert f"{len(used)} documents, " in told and f", {trained} of them (" in told and "trained on" in told


def test_what_is_trained_on(tmp_path: Path, chat_tokenizer: Path, chats: Callable[..., str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CHATS[1]}])
    (ids, mask), end = by_transformers(chat_tokenizer, MARKED, CHATS[1]), -1
    first = mask.index(1)
    last = [0] * first + [0] * mask[first:].index(0)
    last += mask[len(last):]
    for template in (MARKED, PLAIN):
        chats(template, path, "--train-on", "last")
        assert read_masks(tmp_path / "out") == [last] and sum(last) > 1 and last[end] == 0
    chats(MARKED, path, "--train-on", "all")
    assert read_pair(tmp_path / "out") == [ids]  # no mask: all tokens are trained on
    weighed = [CHATS[1][0], CHATS[1][1], CHATS[1][2] | {"weight": 0}, *CHATS[1][3:]]
    for template in (MARKED, PLAIN):
        chats(template, write_lines(tmp_path / "a.jsonl", [{"messages": weighed}]))
        assert read_masks(tmp_path / "out") == [last]


def test_prompts_with_completions(tmp_path: Path, chat_tokenizer: Path, chats: Callable[..., str]) -> None:
    """The loss is of the completion: not of what the assistant says in the prompt."""
    rows = [{"prompt": "What is two and two?", "completion": "Four."}, {"prompt": CHATS[1][:4], "completion": CHATS[1][4:]}]
    expected = [by_transformers(chat_tokenizer, MARKED, CHATS[0]), by_transformers(chat_tokenizer, MARKED, CHATS[1])]
    for template in (MARKED, PLAIN):
        chats(template, write_lines(tmp_path / "a.jsonl", rows))
        assert read_pair(tmp_path / "out", masked=True) == [ids for ids, _ in expected]
        assert read_masks(tmp_path / "out")[0] == expected[0][1]
        second, whole = read_masks(tmp_path / "out")[1], expected[1][1]
        assert sum(second) < sum(whole) and second[-10:] == whole[-10:] and all(a <= b for a, b in zip(second, whole, strict=True))


@pytest.mark.parametrize("form", ["jsonl", "json.gz", "parquet", "arrow", "text in parquet"])
def test_forms_that_hold_chats(form: str, tmp_path: Path, chat_tokenizer: Path, chats: Callable[..., str]) -> None:
    rows = [{"messages": CALLING, "tools": [TOOL]}, {"messages": CHATS[0], "tools": None}]
    path = tmp_path / f"data/a.{form.split()[-1]}"
    path.parent.mkdir()
    if form == "jsonl":
        write_lines(path, rows)
    elif form == "json.gz":
        write_gz(path, json.dumps(rows).encode())
    else:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        as_text = [{name: json.dumps(value) for name, value in row.items() if value} for row in rows]
        table = arrow.Table.from_pylist(as_text if "text" in form else rows)
        if form == "arrow":  # as save_to_disk leaves it
            with arrow.ipc.new_stream(str(path), table.schema) as writer:
                writer.write_table(table)
            (path.parent / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
            (path.parent / "dataset_info.json").write_text("{}")
        else:
            parquet.write_table(table, path)
    (path.parent / "notes.md").write_text("no chat")
    told = chats(PLAIN, path.parent)
    expected = [by_transformers(chat_tokenizer, MARKED, row["messages"], row["tools"]) for row in rows]
    assert read_pair(tmp_path / "out", masked=True) == [ids for ids, _ in expected]
    assert read_masks(tmp_path / "out") == [mask for _, mask in expected]
    assert "notes.md" in told or ".md (--chats reads no texts)" in told


SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rows_of_sharegpt(form: str, tmp_path: Path, chat_tokenizer: Path, chats: Callable[..., str]) -> None:
    """`from` and `value` are `role` and `content`; a `system` beside them is a message before all others."""
    system = {"role": "system", "content": "Be brief."}
    used = [*CHATS, [CALLING[0], {"role": "assistant", "content": "add(1, 2)"}, *CALLING[2:]], [system, *CHATS[0]]]
    rows: list[dict[str, Any]] = [
        {"conversations": [{"from": SHAREGPT[message["role"]], "value": message["content"]} for message in chat], "system": None} for chat in used
    ]
    rows[-1] = {"conversations": rows[-1]["conversations"][1:], "system": system["content"]}
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        write_lines(path, [*rows, {"messages": rows[0]["conversations"]}])
        used = [*used, CHATS[0]]
    else:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    chats(PLAIN, path, "--strict")
    expected = [by_transformers(chat_tokenizer, MARKED, chat) for chat in used]
    assert read_pair(tmp_path / "out", masked=True) == [ids for ids, _ in expected]
    assert read_masks(tmp_path / "out") == [mask for _, mask in expected]


def test_long_chats(tmp_path: Path, chat_tokenizer: Path, chats: Callable[..., str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": chat} for chat in CHATS])
    ids, mask = by_transformers(chat_tokenizer, MARKED, CHATS[3])
    told = chats(PLAIN, path, "--max-tokens", "200")
    assert "left out 1 document: longer than --max-tokens 200" in told and f"it has {len(ids)} tokens" in told
    assert len(read_masks(tmp_path / "out")) == 3
    most = mask.index(1) + 5
    told = chats(PLAIN, path, "--max-tokens", str(most), "--too-long", "cut")
    assert "cut 1 document at their end" in told
    assert read_pair(tmp_path / "out", masked=True)[3] == ids[:most] and read_masks(tmp_path / "out")[3] == mask[:most]
    told = chats(PLAIN, path, "--max-tokens", str(most - 5), "--too-long", "cut")
    assert f"left out 1 document: nothing to train on in its first {most - 5} tokens" in told


def test_the_chats_of_the_example_can_be_used(tmp_path: Path, chats: Callable[..., str]) -> None:
    told = chats(PLAIN, Path(__file__).parents[2] / "examples/finetune/chats.jsonl", "--strict")
    assert "out: 20 documents" in told and all(any(mask) and not mask[0] for mask in read_masks(tmp_path / "out"))


@pytest.mark.usefixtures("processes")
def test_a_held_back_part_has_its_part_of_the_mask(tmp_path: Path, chat_tokenizer: Path, chats: Callable[..., str]) -> None:
    """The parts are the whole; then an unmasked set takes the place of a masked one, and no mask is left."""
    rows = [{"messages": [{"role": "user", "content": f"{n} " * n}, {"role": "assistant", "content": "yes " * (n % 7 + 1)}]} for n in range(1, 201)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    chats(MARKED, path)
    pairs, masks = read_pair(tmp_path / "out", masked=True), read_masks(tmp_path / "out")
    chats(MARKED, path, "--validation-fraction", "0.2", "--workers", "3")
    train, held_back = tmp_path / "out-train", tmp_path / "out-validation"
    assert read_pair(train, masked=True) == pairs[:160] and read_pair(held_back, masked=True) == pairs[160:]
    assert read_masks(train) == masks[:160] and read_masks(held_back) == masks[160:]
    chats(MARKED, path, "--train-on", "all")
    assert read_pair(tmp_path / "out") == pairs
    assert sorted(file.name for file in tmp_path.glob("out*")) == [
        f"{name}.{end}" for name in ("out-train", "out-validation", "out") for end in ("bin", "idx", "mask") if (name, end) != ("out", "mask")
    ]


def test_the_checksum_of_a_large_pair_is_of_parts_of_it(tmp_path: Path) -> None:
    """More than 64 blocks of 64 KiB: `read_masks` sums it in its own way."""
    import numpy as np

    with indexed_writer.IndexedWriter(tmp_path / "set", np.dtype("<u2"), masked=True) as writer:
        tokens = np.arange(3_000_000, dtype="<u2")
        writer.append(tokens, [1_000_000] * 3, (tokens % 3 == 0).astype(np.uint8))
        writer.publish()
    assert sum(map(sum, read_masks(tmp_path / "set"))) == int((np.arange(3_000_000, dtype="<u2") % 3 == 0).sum())

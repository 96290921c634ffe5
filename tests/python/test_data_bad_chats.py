"""What is refused of chats, and of the options that go with them: `conclave.data build --chats`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_cases import CALLING, CALLS, CHATS, FORGETS, LLAMA, MARKED, OTHER_PROMPT, PLAIN, TOOL, TOOLS, by_transformers, write_lines
from conclave.data.__main__ import main
from token_files import read_pair


def test_templates_whose_turns_cannot_be_found_are_refused(tmp_path: Path, chats: Callable[..., str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CHATS[0]}])
    said = chats(FORGETS, path)
    assert said.startswith("2 error: ") and "renders a turn in another way when other turns follow it" in said
    assert "{% generation %}" in said and "--train-on last" in said
    said = chats(OTHER_PROMPT, path)
    assert said.startswith("2 error: ") and "generation prompt is not what it begins the assistant's turn with" in said
    assert not list(tmp_path.glob("out*"))
    assert not chats(FORGETS, path, "--train-on", "last").startswith("2")
    assert not chats(FORGETS, path, "--train-on", "all").startswith("2")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "role": ({"messages": [{"role": "bot", "content": "x"}]}, "a message of the unknown role 'bot'"),
    "no role": ({"messages": [{"content": "x"}]}, "a message without a role"),
    "speaker": ({"conversations": [{"from": "alice", "value": "x"}]}, "a message from the unknown 'alice'"),
    "systems": ({"conversations": [{"from": "system", "value": "x"}], "system": "y"}, "a message of the system in two places"),
    "number": ({"messages": [{"role": "user", "content": 3}]}, "a message whose content is no text"),
    "empty": ({"messages": [CHATS[0][0], {"role": "assistant", "content": " "}]}, "an empty turn of the assistant"),
    "silence": ({"messages": CHATS[0][:1]}, "no turn of the assistant to train on"),
    "first": ({"messages": CHATS[0][1:]}, "the assistant has the first turn"),
    "text": ({"messages": "hello"}, "the text under 'messages' is no JSON"),
    "list": ({"messages": ["hello"]}, "no list of messages under 'messages'"),
    "keys": ({"conversation": []}, "neither 'messages' nor 'conversations' nor 'prompt' with 'completion'"),
    "weight": ({"messages": [CHATS[0][0], CHATS[0][1] | {"weight": 0.5}]}, "a message whose weight is neither 0 nor 1"),
    "surrogate": ({"messages": [CHATS[0][0], {"role": "assistant", "content": "\ud800"}]}, "half a surrogate pair"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_chats_are_left_out_and_counted(case: str, tmp_path: Path, chat_tokenizer: Path, chats: Callable[..., str]) -> None:
    row, reason = BAD[case]
    path = write_lines(tmp_path / "a.jsonl", [row, {"messages": []}, {"messages": CHATS[0]}, row])
    told = chats(PLAIN, path)
    assert f"left out 2 documents: {reason}" in told and "a.jsonl, line 4" in told and "skipped 1 empty documents" in told
    assert read_pair(tmp_path / "out", masked=True) == [by_transformers(chat_tokenizer, MARKED, CHATS[0])[0]]
    assert chats(PLAIN, path, "--strict").startswith(f"2 error: {path}, line 1 (byte 0): {reason}")


def test_a_template_that_knows_no_tools_does_not_lose_them(tmp_path: Path, chats: Callable[..., str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CALLING, "tools": [TOOL]}, {"messages": CALLING}, {"messages": CHATS[0]}])
    told = chats(PLAIN.replace(TOOLS, "").replace(CALLS, ""), path)
    assert "left out 1 document: the chat template leaves out the tools" in told
    assert "left out 1 document: the chat template leaves out tool calls" in told


def test_the_template_tells_what_it_refuses(tmp_path: Path, chats: Callable[..., str]) -> None:
    told = chats(LLAMA, write_lines(tmp_path / "a.jsonl", [{"messages": CHATS[1]}, {"messages": CHATS[0]}]))
    assert "left out 1 document: the chat template refuses it" in told and "roles must alternate" in told
    assert "error: no text in " in chats("{{ nothing.at.all }}", tmp_path / "a.jsonl")
    assert "error: no text in " in chats("{% broken", tmp_path / "a.jsonl")


@pytest.mark.parametrize("words", [["--append-eos"], ["--bos-token", "<s>"], ["--too-long", "cut"], ["--max-tokens", "0"]])
def test_options_that_do_not_go_with_chats(words: list[str], tmp_path: Path, chats: Callable[..., str]) -> None:
    assert chats(PLAIN, write_lines(tmp_path / "a.jsonl", [{"messages": CHATS[0]}]), *words).startswith("2 error: ")


@pytest.mark.usefixtures("work_here")
def test_options_of_chats_without_chats(tmp_path: Path, chat_tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CHATS[0]}])
    command = ["build", str(path), "--tokenizer", str(chat_tokenizer), "--output", str(tmp_path / "out")]
    assert main([*command, "--train-on", "last"]) == 2 and "give --chats, too" in capsys.readouterr().err
    assert main(command) == 2 and "it is a chat: --chats reads those" in capsys.readouterr().err
    assert main(["build", "stdlib", "--chats", *command[2:]]) == 2 and "stdlib is text" in capsys.readouterr().err


@pytest.mark.usefixtures("work_here")
def test_a_tokenizer_without_a_template(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CHATS[0]}])
    assert main(["build", str(path), "--chats", "--tokenizer", str(tokenizer), "--output", str(tmp_path / "out")]) == 2
    assert "has no chat template" in capsys.readouterr().err

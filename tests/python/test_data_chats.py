"""Chats: `conclave.data build --chats`.

Oracle: Transformers' `apply_chat_template` with `return_assistant_tokens_mask`, called on the chats one by one, and a parser
of the files apart from the code that writes them.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conclave.data import indexed_writer, tokenizing
from conclave.data.__main__ import main
from token_files import read_masks, read_pair, write_gz
from transformers import AutoTokenizer, PreTrainedTokenizerFast

build_module = sys.modules["conclave.data.build"]  # whose name in the package is a function's
TURN = "{{ '<|im_start|>' + message['role'] + '\\n' }}"
TOOLS = "{% if tools %}{{ '<|im_start|>tools\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}"
CALLS = "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}"
SPOKEN = "{{ message['content'] or '' }}" + CALLS + "{{ '<|im_end|>' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def chat_template(spoken: str) -> str:
    """ChatML, in which `spoken` is what the assistant says with the end of its turn."""
    answer = "{% if message['role'] == 'assistant' %}" + spoken + "{% else %}" + SPOKEN + "{% endif %}{{ '\\n' }}"
    return TOOLS + "{% for message in messages %}" + TURN + answer + "{% endfor %}" + PROMPT


MARKED = chat_template("{% generation %}" + SPOKEN + "{% endgeneration %}")
PLAIN = chat_template(SPOKEN)
LLAMA = (  # without a generation prompt, with one text for two turns, and demands on who speaks when
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_MARKED = LLAMA.replace("{{ ' ' + message['content'] + ' ' + eos_token }}", "{% generation %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endgeneration %}")
FORGETS = PLAIN.replace("{% if message['role'] == 'assistant' %}", "{% if message['role'] == 'assistant' %}{% if not loop.last %}(said){% endif %}")
OTHER_PROMPT = PLAIN.replace(PROMPT, "{% if add_generation_prompt %}{{ '<|answer|>' }}{% endif %}")

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "Four."}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "Hi\n"}, {"role": "assistant", "content": "Żółw 🐢 ends here 🐢"},
     {"role": "user", "content": "assistant"}, {"role": "assistant", "content": "\n indeed \n"}],
    [{"role": "user", "content": "  user <|im_end|> spelled"}, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b c"}],
    [{"role": "user", "content": "Two turns of words " * 40}, {"role": "assistant", "content": "line\nline\n" * 30}],
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer of the program's own with the special tokens of ChatML."""
    made = tmp_path_factory.mktemp("chat-tokenizer")
    corpus = made / "corpus.txt"
    corpus.write_text(Path(random.__file__).read_text())
    assert main(["train-tokenizer", str(corpus), "--vocab-size", "400", "--output", str(made / "tokenizer.json")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(made)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.chat_template = MARKED
    tokenizer.save_pretrained(made)
    return made


class NoWorkers:
    """Does the work of `Workers` here: each process that it starts takes seconds to import Transformers."""

    def __init__(self, count: int) -> None:
        pass

    def __enter__(self) -> NoWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def map(self, function: Callable[..., Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        return ((task, function(task)) for task in tasks)


@pytest.fixture
def processes() -> None:
    """Real workers."""


@pytest.fixture(autouse=True)
def work_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizing._template_of.cache_clear()
    if "processes" not in request.fixturenames:
        monkeypatch.setattr(build_module, "Workers", NoWorkers)


@pytest.fixture
def chats(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Builds a set of the words with a template; gives what was said, with the exit code in front if it is not 0."""

    def run(template: str, *words: str | Path) -> str:
        (tmp_path / "template.jinja").write_text(template)
        tokenizing._template_of.cache_clear()
        given = ["build", *map(str, words), "--chats", "--tokenizer", str(folder), "--chat-template", str(tmp_path / "template.jinja")]
        code = main([*given, "--output", str(tmp_path / "out"), "--overwrite"])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return told.out if code == 0 else f"{code} {told.err}"

    return run


def by_transformers(folder: Path, template: str, messages: list[dict[str, Any]], tools: Any = None) -> tuple[list[int], list[int]]:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    out = tokenizer.apply_chat_template(messages, tools=tools, chat_template=template, return_dict=True, return_assistant_tokens_mask=True)
    return out["input_ids"], out["assistant_masks"]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("template", "marked"), [(MARKED, MARKED), (PLAIN, MARKED), (LLAMA_MARKED, LLAMA_MARKED), (LLAMA, LLAMA_MARKED)],
                         ids=["marked", "found", "llama marked", "llama found"])
def test_masks_are_those_of_transformers(template: str, marked: str, tmp_path: Path, folder: Path, chats: Callable[..., str]) -> None:
    """`marked`: the same template with its generation markers, which Transformers needs to give a mask."""
    used = [chat[-2:] if "INST" in template else chat for chat in CHATS]
    used = [chat for chat in used if "INST" not in template or chat[0]["role"] == "user"]
    told = chats(template, write_lines(tmp_path / "a.jsonl", [{"messages": chat, "id": 7} for chat in used]))
    expected = [by_transformers(folder, marked, chat) for chat in used]
    assert read_pair(tmp_path / "out", masked=True) == [ids for ids, _ in expected]
    # Where a letter is several tokens Transformers marks only the first of a turn's last letter: none of these ends so.
    assert read_masks(tmp_path / "out") == [mask for _, mask in expected]
    assert all(any(mask) and not all(mask) for _, mask in expected)
    trained = sum(sum(mask) for _, mask in expected)
    assert f"{len(used)} documents, " in told and f", {trained} of them (" in told and "trained on" in told


def test_what_is_trained_on(tmp_path: Path, folder: Path, chats: Callable[..., str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CHATS[1]}])
    (ids, mask), end = by_transformers(folder, MARKED, CHATS[1]), -1
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


def test_prompts_with_completions(tmp_path: Path, folder: Path, chats: Callable[..., str]) -> None:
    """The loss is of the completion: not of what the assistant says in the prompt."""
    rows = [{"prompt": "What is two and two?", "completion": "Four."}, {"prompt": CHATS[1][:4], "completion": CHATS[1][4:]}]
    expected = [by_transformers(folder, MARKED, CHATS[0]), by_transformers(folder, MARKED, CHATS[1])]
    for template in (MARKED, PLAIN):
        chats(template, write_lines(tmp_path / "a.jsonl", rows))
        assert read_pair(tmp_path / "out", masked=True) == [ids for ids, _ in expected]
        assert read_masks(tmp_path / "out")[0] == expected[0][1]
        second, whole = read_masks(tmp_path / "out")[1], expected[1][1]
        assert sum(second) < sum(whole) and second[-10:] == whole[-10:] and all(a <= b for a, b in zip(second, whole, strict=True))


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
CALLING = [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
           {"role": "tool", "content": "3"}, {"role": "assistant", "content": "Three."}]  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", "json.gz", "parquet", "arrow", "text in parquet"])
def test_forms_that_hold_chats(form: str, tmp_path: Path, folder: Path, chats: Callable[..., str]) -> None:
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
    expected = [by_transformers(folder, MARKED, row["messages"], row["tools"]) for row in rows]
    assert read_pair(tmp_path / "out", masked=True) == [ids for ids, _ in expected]
    assert read_masks(tmp_path / "out") == [mask for _, mask in expected]
    assert "notes.md" in told or ".md (--chats reads no texts)" in told


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
    "no role": ({"messages": [{"from": "human", "value": "x"}]}, "a message without a role"),
    "number": ({"messages": [{"role": "user", "content": 3}]}, "a message whose content is no text"),
    "empty": ({"messages": [CHATS[0][0], {"role": "assistant", "content": " "}]}, "an empty turn of the assistant"),
    "silence": ({"messages": CHATS[0][:1]}, "no turn of the assistant to train on"),
    "first": ({"messages": CHATS[0][1:]}, "the assistant has the first turn"),
    "text": ({"messages": "hello"}, "the text under 'messages' is no JSON"),
    "list": ({"messages": ["hello"]}, "no list of messages under 'messages'"),
    "keys": ({"conversations": []}, "neither 'messages' nor 'prompt' with 'completion'"),
    "weight": ({"messages": [CHATS[0][0], CHATS[0][1] | {"weight": 0.5}]}, "a message whose weight is neither 0 nor 1"),
    "surrogate": ({"messages": [CHATS[0][0], {"role": "assistant", "content": "\ud800"}]}, "half a surrogate pair"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_chats_are_left_out_and_counted(case: str, tmp_path: Path, folder: Path, chats: Callable[..., str]) -> None:
    row, reason = BAD[case]
    path = write_lines(tmp_path / "a.jsonl", [row, {"messages": []}, {"messages": CHATS[0]}, row])
    told = chats(PLAIN, path)
    assert f"left out 2 documents: {reason}" in told and "a.jsonl, line 4" in told and "skipped 1 empty documents" in told
    assert read_pair(tmp_path / "out", masked=True) == [by_transformers(folder, MARKED, CHATS[0])[0]]
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


def test_long_chats(tmp_path: Path, folder: Path, chats: Callable[..., str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": chat} for chat in CHATS])
    ids, mask = by_transformers(folder, MARKED, CHATS[3])
    told = chats(PLAIN, path, "--max-tokens", "200")
    assert "left out 1 document: longer than --max-tokens 200" in told and f"it has {len(ids)} tokens" in told
    assert len(read_masks(tmp_path / "out")) == 3
    most = mask.index(1) + 5
    told = chats(PLAIN, path, "--max-tokens", str(most), "--too-long", "cut")
    assert "cut 1 document at their end" in told
    assert read_pair(tmp_path / "out", masked=True)[3] == ids[:most] and read_masks(tmp_path / "out")[3] == mask[:most]
    told = chats(PLAIN, path, "--max-tokens", str(most - 5), "--too-long", "cut")
    assert f"left out 1 document: nothing to train on in its first {most - 5} tokens" in told


@pytest.mark.parametrize("words", [["--append-eos"], ["--bos-token", "<s>"], ["--too-long", "cut"], ["--max-tokens", "0"]])
def test_options_that_do_not_go_with_chats(words: list[str], tmp_path: Path, chats: Callable[..., str]) -> None:
    assert chats(PLAIN, write_lines(tmp_path / "a.jsonl", [{"messages": CHATS[0]}]), *words).startswith("2 error: ")


def test_options_of_chats_without_chats(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CHATS[0]}])
    command = ["build", str(path), "--tokenizer", str(folder), "--output", str(tmp_path / "out")]
    assert main([*command, "--train-on", "last"]) == 2 and "give --chats, too" in capsys.readouterr().err
    assert main(command) == 2 and "it is a chat: --chats reads those" in capsys.readouterr().err
    assert main(["build", "stdlib", "--chats", *command[2:]]) == 2 and "stdlib is text" in capsys.readouterr().err


def test_a_tokenizer_without_a_template(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": CHATS[0]}])
    assert main(["build", str(path), "--chats", "--tokenizer", str(tokenizer), "--output", str(tmp_path / "out")]) == 2
    assert "has no chat template" in capsys.readouterr().err


def test_the_chats_of_the_example_can_be_used(tmp_path: Path, chats: Callable[..., str]) -> None:
    told = chats(PLAIN, Path(__file__).parents[2] / "examples/finetune/chats.jsonl", "--strict")
    assert "out: 20 documents" in told and all(any(mask) and not mask[0] for mask in read_masks(tmp_path / "out"))


@pytest.mark.usefixtures("processes")
def test_a_held_back_part_has_its_part_of_the_mask(tmp_path: Path, folder: Path, chats: Callable[..., str]) -> None:
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

"""What the tests of chats share: chats, templates, and what Transformers makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

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


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
CALLING = [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
           {"role": "tool", "content": "3"}, {"role": "assistant", "content": "Three."}]  # fmt: skip


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


def by_transformers(folder: Path, template: str, messages: list[dict[str, Any]], tools: Any = None) -> tuple[list[int], list[int]]:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    out = tokenizer.apply_chat_template(messages, tools=tools, chat_template=template, return_dict=True, return_assistant_tokens_mask=True)
    return out["input_ids"], out["assistant_masks"]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

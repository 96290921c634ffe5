"""Chats: what a row of a file must hold to be one, and what is refused of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conclave.data.left_out import Flaw
from conclave.printable import shortened

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_KEY = "conversations"
# Whom ShareGPT's rows, and the sets made after them, call what.
SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "model": "assistant",
    "tool": "tool", "observation": "tool",
}  # fmt: skip
CHAT_COLUMNS = (SHAREGPT_KEY, "system", "prompt", "completion", "tools")  # beside the key of the messages

Message = dict[str, Any]


@dataclass(frozen=True)
class Chat:
    """A conversation as Transformers' chat templates take it.

    Attributes:
        messages: with `role` and `content`, as written.
        tools: JSON schemas of the tools that the assistant may call, or None.
        first_trained: turns before this message are not trained on, whatever their role (a prompt's).
    """

    messages: tuple[Message, ...]
    tools: list[Any] | None = None
    first_trained: int = 0

    def __len__(self) -> int:
        return len(self.messages)

    def trained_turns(self) -> list[int]:
        """The messages of the assistant that are trained on: those without `weight: 0`, behind the prompt."""
        return [
            number
            for number, message in enumerate(self.messages)
            if number >= self.first_trained and message["role"] == "assistant" and message.get("weight", 1) != 0
        ]


def chat_of(row: Mapping[str, Any], key: str) -> Chat:
    """The chat of a JSON object, or of a table's row: messages under `key` or ShareGPT's, or `prompt` and `completion`.

    Raises:
        Flaw: it holds none, or one that cannot be used.
    """
    tools = _tools(row.get("tools"))
    if row.get(key) is not None and key != SHAREGPT_KEY:
        return Chat(_messages(row[key], key), tools)
    if row.get(SHAREGPT_KEY) is not None:
        return Chat(_with_system(_messages(row[SHAREGPT_KEY], SHAREGPT_KEY), row), tools)
    if row.get("prompt") is not None and row.get("completion") is not None:
        prompt = _messages(_as_turn(row["prompt"], "user"), "prompt")
        return Chat(prompt + _messages(_as_turn(row["completion"], "assistant"), "completion"), tools, len(prompt))
    names = ", ".join(repr(shortened(name, 40)) for name in list(row)[:6])
    raise Flaw(
        f"neither {key!r} nor {SHAREGPT_KEY!r} nor 'prompt' with 'completion'", f"its keys are {names}. --json-key names the one of the messages"
    )


def _as_turn(value: Any, role: str) -> Any:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _messages(value: Any, key: str) -> tuple[Message, ...]:
    if isinstance(value, str):  # some sets hold the list as JSON in a text
        value = _parsed(value, key)
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise Flaw(f"no list of messages under {key!r}")
    messages = [_by_role(message, number) for number, message in enumerate(value)]
    for number, message in enumerate(messages):
        _check(message, number)
    return tuple(messages)


def _by_role(message: Message, number: int) -> Message:
    """One of ShareGPT's, with `from` and `value`, as templates take it."""
    if "role" in message or not {"from", "value"} <= message.keys():
        return message
    speaker = message["from"]
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        known = ", ".join(SHAREGPT_ROLES)
        raise Flaw(f"a message from the unknown {shortened(speaker, 40)!r}", f"message {number + 1}; those that are known are {known}")
    others = {name: value for name, value in message.items() if name not in ("from", "value")}
    return {"role": SHAREGPT_ROLES[speaker], "content": message["value"], **others}


def _with_system(messages: tuple[Message, ...], row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Some of ShareGPT's sets hold what the system says beside the messages."""
    said = row.get("system")
    if not isinstance(said, str) or _is_blank(said):
        return messages
    if messages and messages[0]["role"] == "system":
        raise Flaw("a message of the system in two places", "under 'system', and as the first message")
    return ({"role": "system", "content": said}, *messages)


def _check(message: Message, number: int) -> None:
    role = message.get("role")
    if not isinstance(role, str):
        raise Flaw("a message without a role", f"message {number + 1} has the keys {', '.join(map(shortened, message)) or 'none'}")
    if role not in ROLES:
        raise Flaw(f"a message of the unknown role {shortened(role, 40)!r}", f"roles are {', '.join(ROLES)}")
    content = message.get("content")
    if content is not None and not isinstance(content, (str, list)):
        raise Flaw("a message whose content is no text", f"message {number + 1}")
    _refuse_lone_surrogates(message, number)
    if message.get("weight", 1) not in (0, 1):
        raise Flaw("a message whose weight is neither 0 nor 1", f"message {number + 1}")
    if role in ("user", "assistant") and _is_blank(content) and not message.get("tool_calls"):
        raise Flaw(f"an empty turn of the {role}", f"message {number + 1}")


def _refuse_lone_surrogates(message: Message, number: int) -> None:
    try:
        json.dumps(message, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:
        raise Flaw("half a surrogate pair, which is no text", f"message {number + 1}") from None


def _is_blank(content: Any) -> bool:
    return content is None or not content or (isinstance(content, str) and not content.strip())


def _tools(value: Any) -> list[Any] | None:
    if isinstance(value, str) and value.strip():
        value = _parsed(value, "tools")
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Flaw("no list of JSON schemas under 'tools'")
    return value


def _parsed(text: str, key: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Flaw(f"the text under {key!r} is no JSON") from None


def without_nulls(value: Any) -> Any:
    """A table's value without the keys that are null: a table has every row's keys in all rows.

    `content: null`, which tool calls have, stays.
    """
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None or name == "content"}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value

"""Chats to tokens by the tokenizer's chat template, through Transformers, and which of the tokens are the assistant's.

A template that marks what the assistant says with `{% generation %}` says it itself. Of any other the turns are found by
rendering beginnings of the chat: a turn is what stands between the chat up to it with the generation prompt, which the
model is given when it answers, and the chat up to its end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from conclave.data.chats import Chat
from conclave.data.errors import DataError
from conclave.data.left_out import Flaw
from conclave.printable import printable, shortened

TrainOn = Literal["assistant", "last", "all"]
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as Transformers looks for it
_UNLIKE_LATER = "it renders a turn in another way when other turns follow it"
_UNLIKE_PROMPT = "its generation prompt is not what it begins the assistant's turn with"
_PROBE = [("user", "alpha"), ("assistant", "beta"), ("user", "gamma"), ("assistant", "delta")]


class AmbiguousTurns(Exception):
    """Beginnings of a chat do not say where its turns are."""


@dataclass(frozen=True)
class ChatTokens:
    """Tokens of a chat, and of each whether it is trained on; None: all are."""

    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.uint8] | None


class ChatTemplate:
    """A tokenizer of Transformers with its chat template.

    Raises:
        DataError: the tokenizer cannot be opened, or has no template and none is given.
    """

    def __init__(self, tokenizer_file: Path, template_file: Path | None) -> None:
        self._where = printable(template_file or tokenizer_file)
        self._tokenizer = _opened(tokenizer_file)
        if template_file is not None:
            try:
                self._tokenizer.chat_template = template_file.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise DataError(f"--chat-template {printable(template_file)} cannot be read: {shortened(error)}") from None
        if not self._tokenizer.chat_template:
            raise DataError(
                f"{printable(tokenizer_file.parent)} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json). Take the tokenizer of an instruction-tuned model, or give --chat-template FILE"
            )
        self._special_ids = {number for number, token in self._tokenizer.added_tokens_decoder.items() if token.special}

    def check(self, train_on: TrainOn) -> None:
        """Tries the template on a small chat.

        Raises:
            DataError: the assistant's turns cannot be told from the others.
        """
        chat = Chat(tuple({"role": role, "content": content} for role, content in _PROBE))
        try:
            self.encode(chat, train_on)
        except AmbiguousTurns as reason:
            last = "" if train_on == "last" else "--train-on last may do, for the last turn has none behind it; or "
            raise DataError(
                f"{self._where}: the chat template does not say where the assistant's turns are: {reason}. {last}mark them "
                "in it with {% generation %} and {% endgeneration %} (--chat-template FILE), or train on whole chats "
                "(--train-on all)"
            ) from None
        except Flaw:
            pass  # such as a role that it demands: each chat tells its own

    def encode(self, chat: Chat, train_on: TrainOn) -> ChatTokens:
        """The tokens of a chat.

        Raises:
            Flaw: the template refuses it, or leaves nothing to train on.
            AmbiguousTurns: the template's turns cannot be found.
        """
        try:
            self._refuse_lost_tools(chat)
            if train_on == "all":
                return ChatTokens(self._encoded(self._rendered(chat, len(chat)))[0], None)
            turns = chat.trained_turns()[-1:] if train_on == "last" else chat.trained_turns()
            if not turns:
                raise Flaw("no turn of the assistant to train on")
            marked = _MARKER.search(self._tokenizer.get_chat_template(None, chat.tools)) is not None
            tokens = self._by_markers(chat, turns) if marked else self._by_beginnings(chat, turns)
        except (Flaw, AmbiguousTurns, MemoryError, DataError):
            raise
        except Exception as error:  # whatever a template, which is a program, raises
            raise Flaw("the chat template refuses it", shortened(error)) from None
        if tokens.mask is not None and not tokens.mask.any():
            raise Flaw("no token of the assistant: the chat template leaves out what it says")
        return tokens

    def _refuse_lost_tools(self, chat: Chat) -> None:
        """A template that knows nothing of tools passes over them in silence."""
        without_calls = tuple({key: message[key] for key in message if key != "tool_calls"} for message in chat.messages)
        for what, other in (
            ("the tools", Chat(chat.messages, None) if chat.tools else chat),
            ("tool calls", Chat(without_calls, chat.tools) if without_calls != chat.messages else chat),
        ):
            if other is not chat and self._renders_alike(chat, other):
                raise Flaw(f"the chat template leaves out {what}")

    def _renders_alike(self, chat: Chat, other: Chat) -> bool:
        text = self._rendered(chat, len(chat))
        try:
            return self._rendered(other, len(other)) == text
        except Exception:
            return False

    def _by_markers(self, chat: Chat, turns: list[int]) -> ChatTokens:
        out = self._tokenizer.apply_chat_template(
            list(chat.messages), tools=chat.tools, return_dict=True, return_assistant_tokens_mask=True
        )
        ids = np.array(out["input_ids"], dtype=np.int64)
        mask = np.array(out["assistant_masks"], dtype=np.uint8)
        spoken = [number for number, message in enumerate(chat.messages) if message["role"] == "assistant"]
        if turns != spoken:  # only some of the marked stretches
            edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]]).astype(np.int8)))
            if len(edges) != 2 * len(spoken):
                raise Flaw(
                    "the chat template marks another number of stretches than the assistant has turns",
                    f"{len(edges) // 2} and {len(spoken)}",
                )
            for number, begin, end in zip(spoken, edges[::2], edges[1::2], strict=True):
                if number not in turns:
                    mask[begin:end] = 0
        return ChatTokens(ids, mask)

    def _by_beginnings(self, chat: Chat, turns: list[int]) -> ChatTokens:
        text = self._rendered(chat, len(chat))
        ids, spans = self._encoded(text)
        mask = np.zeros(len(ids), dtype=np.uint8)
        for turn in turns:
            before = self._rendered(chat, turn, prompt=True)
            behind = text if turn + 1 == len(chat) else self._rendered(chat, turn + 1)
            if not text.startswith(behind):
                raise AmbiguousTurns(_UNLIKE_LATER)
            if not behind.startswith(before):
                raise AmbiguousTurns(_UNLIKE_PROMPT)
            mask[self._tokens_between(text, ids, spans, len(before), len(behind))] = 1
        return ChatTokens(ids, mask)

    def _tokens_between(
        self, text: str, ids: npt.NDArray[np.int64], spans: npt.NDArray[np.int64], begin: int, end: int
    ) -> npt.NDArray[np.int64]:
        """Tokens of characters [begin, end), up to the one that ends the turn: a line end behind that is nobody's."""
        inside = np.flatnonzero((spans[:, 0] < end) & (spans[:, 1] > begin))
        special = [position for position in inside if int(ids[position]) in self._special_ids]
        if special and not text[spans[special[-1], 1] : end].strip():
            inside = inside[inside <= special[-1]]
        return inside

    def _rendered(self, chat: Chat, messages: int, prompt: bool = False) -> str:
        """The chat up to a message."""
        if not messages:
            raise Flaw("the assistant has the first turn, whose beginning the chat template does not show")
        return str(
            self._tokenizer.apply_chat_template(
                list(chat.messages[:messages]), tools=chat.tools, tokenize=False, add_generation_prompt=prompt
            )
        )

    def _encoded(self, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Ids, and [N, 2]: where the characters of each token begin and end."""
        out = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return np.array(out["input_ids"], dtype=np.int64), np.array(out["offset_mapping"], dtype=np.int64).reshape(-1, 2)


def _opened(file: Path) -> Any:
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
        from transformers.utils import logging

        logging.set_verbosity_error()
        if file.name == "tokenizer.json" and file.with_name("tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, local_files_only=True, trust_remote_code=False)
        else:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"{printable(file.parent)}: Transformers cannot open this tokenizer: {shortened(error)}") from None
    if not tokenizer.is_fast:
        raise DataError(f"{printable(file)}: Transformers opens it without the `tokenizers` library, which chats need")
    return tokenizer

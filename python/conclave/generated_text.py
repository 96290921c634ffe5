"""Text to token ids and back for `conclave generate` and `conclave chat`, which start this and speak with it in lines of JSON.

Requests have a key `do`; every one is answered by a line, `{"error": ...}` if it is the user's mistake.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from conclave.printable import printable, shortened

_HIDDEN_TAIL = 6  # tokens of a prompt that are decoded along, so that the first new token reads as it does behind them
_UNFINISHED = "\ufffd"  # what a character decodes to whose other bytes are still to come


class TextError(Exception):
    """A mistake the user can mend."""


class StopWords:
    """Text up to the first stop word. What may be the beginning of one is held back until it is known."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._held = ""
        self.found = False

    def take(self, text: str) -> str:
        """What can be shown, now that `text` has come."""
        text = self._held + text
        self._held = ""
        found = [(place + len(word), place) for word in self._words if (place := text.find(word)) >= 0]
        if found:  # the one that was there first, however many letters a token has
            self.found = True
            return text[: min(found)[1]]
        most = max((self._beginning_at_end(text, word) for word in self._words), default=0)
        self._held = text[len(text) - most :]
        return text[: len(text) - most]

    def rest(self) -> str:
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _beginning_at_end(text: str, word: str) -> int:
        for length in range(min(len(text), len(word) - 1), 0, -1):
            if text.endswith(word[:length]):
                return length
        return 0


class GrowingText:
    """The text of tokens that come one by one, behind a prompt.

    A token's text depends on those before it, so some are decoded with it, and what they alone decode to is taken off.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], stop_words: list[str]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt)
        self._from = max(0, len(prompt) - _HIDDEN_TAIL)  # decoded from here
        self._read = len(prompt)  # of which so many were shown
        self._stop = StopWords(stop_words)

    @property
    def is_stopped(self) -> bool:
        return self._stop.found

    def append(self, token: int) -> str:
        self._ids.append(token)
        text = self._new_text()
        if not text or text.endswith(_UNFINISHED):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return self._stop.take(text)

    def rest(self) -> str:
        """What was held back, when no more tokens come."""
        if self.is_stopped:
            return ""
        text = self._stop.take(self._new_text())
        return text if self.is_stopped else text + self._stop.rest()

    def _new_text(self) -> str:
        return self._decoded(self._ids[self._from :])[len(self._decoded(self._ids[self._from : self._read])) :]

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class TextService:
    """Answers requests with the tokenizer of a folder."""

    def __init__(self, folder: Path, stop_words: list[str]) -> None:
        self._folder = folder
        self._tokenizer = _opened(folder)
        self._stop_words = stop_words
        self._texts: dict[int, GrowingText] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "encode":
                return {"ids": [[int(token) for token in self._tokenizer(text)["input_ids"]] for text in request["texts"]]}
            case "chat":
                return {"ids": self._chat(request["messages"])}
            case "begin":
                self._texts[request["text"]] = GrowingText(self._tokenizer, request["ids"], self._stop_words)
                return {}
            case "append":
                shown = [self._texts[text].append(token) for text, token in request["tokens"]]
                return {"shown": shown, "stopped": [text for text, _ in request["tokens"] if self._texts[text].is_stopped]}
            case "end":
                return {"shown": self._texts.pop(request["text"]).rest()}
        raise ValueError(request["do"])

    def _chat(self, messages: list[dict[str, str]]) -> list[int]:
        if not self._tokenizer.chat_template:
            raise TextError(
                f"{printable(self._folder)} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json). "
                "Take the tokenizer of an instruction-tuned model (--tokenizer), or use conclave generate."
            )
        try:
            out = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        except Exception as error:  # a template raises whatever it likes, such as for a role that it does not know
            raise TextError(f"the chat template of {printable(self._folder)} refuses the conversation: {shortened(error)}") from None
        return [int(token) for token in out["input_ids"]]


def _opened(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        alone = folder / "tokenizer.json"
        if alone.is_file() and not (folder / "tokenizer_config.json").is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(alone))
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except MemoryError:
        raise
    except Exception as error:
        raise TextError(f"{printable(folder)}: Transformers cannot open this tokenizer: {shortened(error)}") from None


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m conclave.generated_text", description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--stop", action="append", default=[])
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a user who ends an answer; this ends with its input
    try:
        service = TextService(options.tokenizer, options.stop)
        _say({})
    except TextError as error:
        _say({"error": str(error)})
        return 2
    for line in sys.stdin:
        try:
            _say(service.answer(json.loads(line)))
        except TextError as error:
            _say({"error": str(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())

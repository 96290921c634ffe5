"""The words of the command line."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from conclave.data.errors import DataError
from conclave.data.formats import text_suffix
from conclave.data.inputs import ReadOptions
from conclave.data.tokenizing import ChatRules
from conclave.printable import printable

OVERVIEW = """Makes what `conclave train` reads: a tokenizer, and token files (Megatron's PREFIX.bin and
PREFIX.idx).

example, from text to data in two commands:
  conclave data train-tokenizer stdlib --vocab-size 2048 --output runs/tokenizer/tokenizer.json
  conclave data build stdlib --tokenizer runs/tokenizer --output runs/stdlib \\
    --validation-fraction 0.05
then, in the job file:
  data: {train: runs/stdlib-train, validation: runs/stdlib-validation}
"""

INPUT_HELP = (
    "files or folders, taken in the order given: .txt, .md and .py (one document each), .jsonl, .ndjson and .json (a "
    "document a line, or an array of them), these also as .gz and .zst, .parquet and .arrow (a document a row), folders "
    "of the `datasets` library; in upper or lower case. A folder is searched recursively. The word `stdlib` means the "
    "sources of Python's own standard library"
)

BUILD_EXAMPLES = """examples:
  # a folder of text, the last 5 % of the documents held back:
  # books-train.bin, books-train.idx, books-validation.bin and books-validation.idx
  conclave data build books/ --tokenizer mixtral/ --output books --validation-fraction 0.05

  # JSON lines whose text is under "content", all in one set: wiki.bin and wiki.idx
  conclave data build wiki-1.jsonl.gz wiki-2.jsonl.gz --json-key content \\
    --tokenizer mixtral/ --output wiki

  # chats, with the loss on what the assistant says: chats.bin, chats.idx and chats.mask
  conclave data build chats.jsonl --chats --tokenizer instruct-model/ --output chats

  # what save_to_disk wrote, tokenized already
  conclave data build dataset/ --split train --json-key input_ids --vocab-size 32000 --output tokens

Texts are encoded as they are: the tokenizer adds no special tokens, and text that spells one
("</s>") stays text. Tokens take 16 bits if the vocabulary has fewer than 65,500, else 32. The
result does not depend on --workers.
Documents that cannot be used are left out, counted and named; --strict ends with the first of them.
"""

TRAIN_EXAMPLES = """example:
  conclave data train-tokenizer books/ --vocab-size 8192 --output my-tokenizer/tokenizer.json

Byte-level BPE: any text can be encoded and decodes to itself. <|endoftext|> has id 0 and ends
documents. A tokenizer_config.json is written beside it, so that Transformers loads the folder:
  AutoTokenizer.from_pretrained("my-tokenizer")
"""

SYNTHETIC_EXAMPLES = """example:
  conclave data synthetic --vocab-size 32000 --documents 1000 --output runs/synthetic

Each token is the one before it plus a random step, so that a loss can fall: from log(vocab-size)
to the entropy that is printed. The same arguments give the same files.
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Lines of at most 100 columns, as the program's own help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(shutil.get_terminal_size().columns, 100))


class Parser(argparse.ArgumentParser):
    """Tells mistakes as the program does."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {printable(message)}\n       {self.prog} --help explains the command", file=sys.stderr)
        sys.exit(2)


def parser() -> Parser:
    """The parser. The command's name is left in `command`."""
    top = Parser(prog="conclave data", description=OVERVIEW, formatter_class=_Formatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_build(_command(commands, "build", "tokenize documents into token files", BUILD_EXAMPLES))
    _add_train_tokenizer(_command(commands, "train-tokenizer", "train a byte-level BPE tokenizer", TRAIN_EXAMPLES))
    _add_synthetic(_command(commands, "synthetic", "write token files without a text", SYNTHETIC_EXAMPLES))
    return top


def read_options(options: argparse.Namespace) -> ReadOptions:
    """How inputs become documents.

    Raises:
        DataError: --suffix names files that are no text.
    """
    return ReadOptions(
        json_key=options.json_key or ("messages" if _is_of_chats(options) else "text"),
        chats=_is_of_chats(options),
        split_on_blank_lines=options.split_on_blank_lines,
        extra_suffixes=tuple(map(text_suffix, options.suffix)),
        ignored_suffixes=tuple(map(_dotted, options.ignore)),
        split=options.split,
        order=options.order,
        strict=options.strict,
    )


def chat_rules(options: argparse.Namespace) -> ChatRules:
    """How chats become tokens.

    Raises:
        DataError: an option of chats is given without --chats.
    """
    given = {
        "--chat-template": options.chat_template,
        "--train-on": options.train_on,
        "--max-tokens": options.max_tokens,
        "--too-long": options.too_long,
    }
    for name, value in given.items():
        if value is not None and not options.chats:
            raise DataError(f"{name} is of chats: give --chats, too")
    return ChatRules(
        options.chat_template, options.train_on or "assistant", options.max_tokens, options.too_long == "cut"
    )


def _is_of_chats(options: argparse.Namespace) -> bool:
    return bool(getattr(options, "chats", False))


def _command(commands: argparse._SubParsersAction, name: str, what: str, examples: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=examples, formatter_class=_Formatter
    )
    command.add_argument("--overwrite", action="store_true", help="replace what is there under the names of --output")
    return command


def _add_build(command: argparse.ArgumentParser) -> None:
    _add_inputs(command)
    add = command.add_argument
    add("--tokenizer", type=Path, metavar="FILE", help="any tokenizer.json, or the folder that holds it")
    add("--output", type=Path, required=True, metavar="PREFIX", help="the files' path without .bin and .idx")
    add(
        "--validation-fraction",
        type=_number,
        default=0.0,
        metavar="F",
        help="hold the last part F (0.05: 5 %%) of the documents back, and write PREFIX-train and PREFIX-validation "
        "(default: one set, PREFIX)",
    )
    add(
        "--append-eos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="end each document with the end-of-text token (default: texts, not documents that are token ids)",
    )
    add(
        "--eos-token",
        metavar="TOKEN",
        help="that token (default: eos_token of the tokenizer_config.json beside the tokenizer, else a well-known one, "
        "else none)",
    )
    add("--prepend-bos", action="store_true", help="begin each document with the tokenizer's first token of a text")
    add("--bos-token", metavar="TOKEN", help="that token (default: as for --eos-token); implies --prepend-bos")
    add("--vocab-size", type=_whole, metavar="N", help="for documents that are token ids, instead of --tokenizer")
    add("--chats", action="store_true", help="documents are chats: `messages`, or `prompt` and `completion`, in each object or row")
    add("--chat-template", type=Path, metavar="FILE", help="with --chats: this template (default: the tokenizer's own)")
    add(
        "--train-on",
        choices=("assistant", "last", "all"),
        help="with --chats: what the loss is of: the assistant's turns, its last turn, or all tokens (default: assistant)",
    )
    add("--max-tokens", type=_whole, metavar="N", help="with --chats: chats of more tokens are too long (default: none is)")
    add(
        "--too-long",
        choices=("leave-out", "cut"),
        help="with --max-tokens: what is done with them: they are left out and counted, or lose their end (default: leave-out)",
    )
    add("--workers", type=_positive, default=0, metavar="N", help="processes (default: one a core)")


def _add_train_tokenizer(command: argparse.ArgumentParser) -> None:
    _add_inputs(command)
    command.add_argument(
        "--vocab-size", type=_whole, default=1024, metavar="N", help="tokens, at least 257 (default: %(default)s)"
    )
    command.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="where to write: .../tokenizer.json"
    )


def _add_synthetic(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--output", type=Path, required=True, metavar="PREFIX", help="the files' path without .bin and .idx")
    add("--vocab-size", type=_whole, required=True, metavar="N", help="token ids are below it")
    add("--documents", type=_whole, default=1000, metavar="N", help="how many (default: %(default)s)")
    add("--document-tokens", type=_whole, default=1024, metavar="N", help="tokens of each (default: %(default)s)")
    add("--seed", type=_seed, default=0, metavar="N", help="(default: %(default)s)")


def _add_inputs(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("inputs", nargs="+", metavar="INPUT", help=INPUT_HELP)
    add(
        "--json-key",
        metavar="KEY",
        help="the key of a JSON object, or the column of a table, that holds the document: a text, or a list of token "
        "ids such as input_ids (default: text; of chats: messages)",
    )
    add(
        "--split-on-blank-lines",
        action="store_true",
        help="a .txt file holds many documents, with blank lines between them",
    )
    add(
        "--suffix",
        action="append",
        default=[],
        metavar=".EXT",
        help="also read files with this suffix as text, one document each; repeatable",
    )
    add(
        "--ignore",
        action="append",
        default=[],
        metavar=".EXT",
        help="leave files with this suffix in folders out, though they look like data; repeatable",
    )
    add("--split", metavar="NAME", help="of a folder with several splits, as `datasets` writes them: this one, or all")
    add(
        "--order",
        choices=("path", "hash"),
        default="path",
        help="order of the files in a folder: by path, or by a hash of it, so that the last ones are a fair sample "
        "(default: %(default)s; stdlib: always hash)",
    )
    add("--strict", action="store_true", help="end at the first document that cannot be used, instead of counting it")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _positive(text: str) -> int:
    value = _whole(text)
    if not 1 <= value <= 4096:
        raise argparse.ArgumentTypeError(f"{value} is not between 1 and 4096")
    return value


def _seed(text: str) -> int:
    value = _whole(text)
    if not 0 <= value < 2**64:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 2^64 - 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _dotted(word: str) -> str:
    return (word if word.startswith(".") else f".{word}").lower()

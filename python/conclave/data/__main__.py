"""The command line: `python -m conclave.data build | train-tokenizer`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from conclave.data.build import BuildOptions, build
from conclave.data.documents import ReadOptions, Skipped
from conclave.data.errors import DataError
from conclave.data.tokenizer import train_tokenizer, vocabulary_size

SHOWN_UNDECODABLE = 5

INPUT_HELP = (
    "files or folders, taken in the order given: .txt and .py (one document each), .jsonl (one document a line). "
    "A folder is searched recursively. The word `stdlib` means the sources of Python's own standard library"
)

OVERVIEW = """Makes what `conclave train` reads: a tokenizer, and token files (Megatron's PREFIX.bin and PREFIX.idx).

example, from text to data in two commands:
  python -m conclave.data train-tokenizer stdlib --vocab-size 2048 --output runs/tokenizer/tokenizer.json
  python -m conclave.data build stdlib --tokenizer runs/tokenizer --output runs/stdlib --validation-fraction 0.05
then, in the job file:
  data: {train: runs/stdlib-train, validation: runs/stdlib-validation}
"""

BUILD_EXAMPLES = """examples:
  # a folder of text, the last 5 % of the documents held back: books-train.bin/.idx and books-validation.bin/.idx
  python -m conclave.data build books/ --tokenizer mixtral/tokenizer.json --output books --validation-fraction 0.05

  # JSON lines whose text is under "content", all in one set: wiki.bin and wiki.idx
  python -m conclave.data build wiki-1.jsonl wiki-2.jsonl --json-key content --tokenizer mixtral/ --output wiki

Texts are encoded as they are: the tokenizer adds no special tokens, and text that spells one ("</s>") stays text.
Tokens take 16 bits if the vocabulary has fewer than 65,500, else 32. The result does not depend on --workers.
"""

TRAIN_EXAMPLES = """example:
  python -m conclave.data train-tokenizer books/ --vocab-size 8192 --output my-tokenizer/tokenizer.json

Byte-level BPE: any text can be encoded and decodes to itself. <|endoftext|> has id 0 and ends documents. A
tokenizer_config.json is written beside it, so that Transformers loads the folder:
  AutoTokenizer.from_pretrained("my-tokenizer")
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Exit codes: 0, 2 for a user's mistake, 1 for a failure of the machine, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print(
            "error: a worker process was killed (out of memory?); nothing was written. Try fewer --workers",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m conclave.data", description=OVERVIEW, formatter_class=formatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    builder = commands.add_parser(
        "build",
        help="tokenize documents into token files",
        formatter_class=formatter,
        epilog=BUILD_EXAMPLES,
        description="Tokenizes documents into PREFIX.bin and PREFIX.idx, in parallel.",
    )
    builder.set_defaults(run=_run_build)
    _add_inputs(builder)
    builder.add_argument(
        "--tokenizer", type=Path, required=True, metavar="FILE", help="any tokenizer.json, or the folder that holds it"
    )
    builder.add_argument(
        "--output", type=Path, required=True, metavar="PREFIX", help="the files' path without .bin and .idx"
    )
    builder.add_argument(
        "--validation-fraction",
        type=float,
        default=0.0,
        metavar="F",
        help="hold the last part F (0.05: 5 %%) of the documents back, and write PREFIX-train and PREFIX-validation "
        "(default: one set, PREFIX)",
    )
    builder.add_argument(
        "--append-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end each document with the end-of-text token",
    )
    builder.add_argument(
        "--eos-token",
        metavar="TOKEN",
        help="that token (default: eos_token of the tokenizer_config.json beside the tokenizer, else a well-known one, "
        "else none)",
    )
    builder.add_argument("--workers", type=_positive, default=0, metavar="N", help="processes (default: one a core)")

    trainer = commands.add_parser(
        "train-tokenizer",
        help="train a byte-level BPE tokenizer",
        formatter_class=formatter,
        epilog=TRAIN_EXAMPLES,
        description="Trains a byte-level BPE tokenizer on documents.",
    )
    trainer.set_defaults(run=_run_train_tokenizer)
    _add_inputs(trainer)
    trainer.add_argument(
        "--vocab-size", type=_positive, default=1024, metavar="N", help="tokens, at least 257 (default: %(default)s)"
    )
    trainer.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="where to write: .../tokenizer.json"
    )
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=INPUT_HELP)
    parser.add_argument(
        "--json-key",
        default="text",
        metavar="KEY",
        help="the key of a .jsonl line that holds its text (default: %(default)s)",
    )
    parser.add_argument(
        "--split-on-blank-lines",
        action="store_true",
        help="a .txt file holds many documents, with blank lines between them",
    )
    parser.add_argument(
        "--suffix",
        action="append",
        default=[],
        type=_suffix,
        metavar=".EXT",
        help="also read files with this suffix, one document each; repeatable",
    )
    parser.add_argument(
        "--order",
        choices=("path", "hash"),
        default="path",
        help="order of the files in a folder: by path, or by a hash of it, so that the last ones are a fair sample "
        "(default: %(default)s; stdlib: always hash)",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _suffix(text: str) -> str:
    return text if text.startswith(".") else f".{text}"


def _read_options(options: argparse.Namespace) -> ReadOptions:
    return ReadOptions(options.json_key, options.split_on_blank_lines, tuple(options.suffix), options.order)


def _run_build(options: argparse.Namespace) -> None:
    settings = BuildOptions(
        read=_read_options(options),
        validation_fraction=options.validation_fraction,
        eos_token=options.eos_token,
        append_eos=options.append_eos,
        workers=options.workers,
    )
    summary = build(options.inputs, options.tokenizer, options.output, settings)
    for prefix, (documents, tokens) in summary.sets.items():
        print(f"{prefix}: {documents:,} documents, {tokens:,} tokens ({tokens * summary.dtype.itemsize:,} bytes)")
    if summary.eos_token is not None:
        ending = f"each document ends with {summary.eos_token}"
    else:
        ending = "documents have no end-of-text token" + (
            ": the tokenizer has none (--eos-token names one)" if options.append_eos else ""
        )
    print(f"vocabulary {summary.vocab_size:,}; {ending}")
    _tell_skipped(summary.skipped)


def _run_train_tokenizer(options: argparse.Namespace) -> None:
    tokenizer, skipped = train_tokenizer(options.inputs, options.output, options.vocab_size, _read_options(options))
    size = vocabulary_size(tokenizer)
    print(f"{options.output}: {size:,} tokens")
    if size < options.vocab_size:
        print(f"fewer than the {options.vocab_size:,} asked for: the text has no more pairs to merge")
    _tell_skipped(skipped)


def _tell_skipped(skipped: Skipped) -> None:
    if skipped.empty:
        print(f"skipped {skipped.empty:,} empty documents")
    if skipped.undecodable:
        print(f"skipped {len(skipped.undecodable):,} documents that are not UTF-8:")
        for place in skipped.undecodable[:SHOWN_UNDECODABLE]:
            print(f"  {place}")
        if len(skipped.undecodable) > SHOWN_UNDECODABLE:
            print(f"  and {len(skipped.undecodable) - SHOWN_UNDECODABLE:,} more")


if __name__ == "__main__":
    sys.exit(main())

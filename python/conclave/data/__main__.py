"""The command line: `python -m conclave.data build | train-tokenizer | synthetic`, or `conclave data ...`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from conclave.data.arguments import chat_rules, parser, read_options
from conclave.data.build import BuildOptions, Summary, build
from conclave.data.errors import DataError
from conclave.data.synthetic import write_synthetic
from conclave.data.tokenizer_training import train_tokenizer
from conclave.data.workers import WorkerError
from conclave.printable import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Exit codes: 0, 2 for a user's mistake, 1 for a failure of the machine, 130 if interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    try:
        _COMMANDS[options.command](options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {printable(error.filename or '')}: {error.strerror or printable(error)}", file=sys.stderr)
        return 1
    except MemoryError:
        print("error: out of memory; nothing was written", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def _run_build(options: argparse.Namespace) -> None:
    settings = BuildOptions(
        read=read_options(options),
        validation_fraction=options.validation_fraction,
        append_eos=options.append_eos,
        eos_token=options.eos_token,
        prepend_bos=options.prepend_bos,
        bos_token=options.bos_token,
        vocab_size=options.vocab_size,
        workers=options.workers,
        overwrite=options.overwrite,
        chats=chat_rules(options),
    )
    summary = build(options.inputs, options.tokenizer, options.output, settings, say=_say)
    for prefix, (documents, tokens) in summary.sets.items():
        size = tokens * summary.dtype.itemsize
        trained = summary.trained.get(prefix)
        share = "" if trained is None else f", {trained:,} of them ({100 * trained / max(tokens, 1):.1f} %) trained on"
        _say(f"{printable(prefix)}: {documents:,} documents, {tokens:,} tokens ({size:,} bytes){share}")
    _say(f"vocabulary {summary.vocab_size:,}; {_framing(options, summary)}")
    if summary.drops_characters:
        _say("warning: characters that the tokenizer does not know leave no token: it has neither bytes nor an unknown token")
    for line in summary.left_out.lines():
        _say(line)


def _framing(options: argparse.Namespace, summary: Summary) -> str:
    """What stands around a document."""
    if options.chats:
        return "documents are chats, as the chat template writes them"
    framed = []
    if summary.begin is not None:
        framed.append(f"each document begins with {printable(summary.begin.name)}")
    if summary.end is not None:
        which = "document" if options.append_eos else "text"
        framed.append(f"each {which} ends with {printable(summary.end.name)}")
    elif options.append_eos is not False and options.tokenizer is not None:
        framed.append("documents have no end-of-text token: the tokenizer has none (--eos-token names one)")
    else:
        framed.append("documents have no end-of-text token")
    return "; ".join(framed)


def _run_train_tokenizer(options: argparse.Namespace) -> None:
    training = train_tokenizer(
        options.inputs, options.output, options.vocab_size, read_options(options), options.overwrite, _say
    )
    _say(
        f"{printable(options.output)}: {training.vocab_size:,} tokens, from {training.documents:,} documents of "
        f"{training.characters:,} characters"
    )
    if training.vocab_size < options.vocab_size:
        _say(f"fewer than the {options.vocab_size:,} asked for: the text has no more pairs to merge")
    for line in training.left_out.lines():
        _say(line)


def _run_synthetic(options: argparse.Namespace) -> None:
    entropy = write_synthetic(
        options.output, options.vocab_size, options.documents, options.document_tokens, options.seed, options.overwrite
    )
    tokens = options.documents * options.document_tokens
    _say(f"{printable(options.output)}: {options.documents:,} documents, {tokens:,} tokens")
    _say(f"a model that has learned the steps has a loss of {entropy:.4f} nats a token")


def _say(line: str) -> None:
    print(line, flush=True)


_COMMANDS = {"build": _run_build, "train-tokenizer": _run_train_tokenizer, "synthetic": _run_synthetic}

if __name__ == "__main__":
    for stop in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stop) != signal.SIG_IGN:  # as under nohup
            signal.signal(stop, lambda number, frame: sys.exit(128 + number))  # which takes the files in work away
    sys.exit(main())

"""Tokenizing documents into `.bin`/`.idx` pairs, by several processes. The result does not depend on their number."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from conclave.data.cutting import pieces_of, tasks_of
from conclave.data.errors import DataError
from conclave.data.indexed_writer import IndexedWriter, files_of_set, token_type
from conclave.data.inputs import Inputs, ReadOptions, list_inputs
from conclave.data.left_out import LeftOut
from conclave.data.outputs import check_outputs
from conclave.data.pieces import TextFile, TextPart
from conclave.data.tokenizer import MOST_IDS, SpecialToken, TokenizerFacts, look_at, tokenizer_file
from conclave.data.tokenizing import ChatRules, Rules, check_template, survey, tokenize
from conclave.data.workers import WorkerError, Workers
from conclave.printable import printable

PROCESS_BYTES = 1 << 20  # of input that are worth another process


@dataclass(frozen=True)
class BuildOptions:
    """How documents become a data set.

    Attributes:
        read: how inputs become documents.
        validation_fraction: of the documents, the last ones, that go to PREFIX-validation, the others to PREFIX-train;
            0: all go to PREFIX.
        append_eos: whether there is a token behind each document; None: behind texts, not behind token ids.
        eos_token: that token; None: the tokenizer's own, if it has one.
        prepend_bos: whether there is a token in front of each document.
        bos_token: that token; None: the tokenizer's own.
        vocab_size: without a tokenizer, for documents of token ids: ids are below it.
        workers: processes; 0: one a core.
        overwrite: whether a data set that is there may be replaced.
        chats: how chats become tokens, if `read.chats`.
    """

    read: ReadOptions = ReadOptions()
    validation_fraction: float = 0.0
    append_eos: bool | None = None
    eos_token: str | None = None
    prepend_bos: bool = False
    bos_token: str | None = None
    vocab_size: int | None = None
    workers: int = 0
    overwrite: bool = False
    chats: ChatRules = ChatRules()


@dataclass
class Summary:
    """What was written."""

    sets: dict[Path, tuple[int, int]] = field(default_factory=dict)  # prefix: documents, tokens
    trained: dict[Path, int] = field(default_factory=dict)  # of masked sets: tokens that are trained on
    dtype: np.dtype = np.dtype("<u2")
    vocab_size: int = 0
    begin: SpecialToken | None = None
    end: SpecialToken | None = None
    drops_characters: bool = False
    left_out: LeftOut = field(default_factory=LeftOut)


def build(
    inputs: Sequence[str],
    tokenizer_path: Path | None,
    output: Path,
    options: BuildOptions = BuildOptions(),
    say: Callable[[str], object] = lambda line: None,
) -> Summary:
    """Tokenizes all documents of the inputs and writes them as one data set, or as a training and a validation set.

    Documents keep the order of the inputs; the files are the same for any number of workers. They appear under their
    names when they are complete. `say` is told at the start what is read and what is not.

    Raises:
        DataError: inputs, tokenizer or options are not usable; nothing was written.
        WorkerError: a process ended in its work; nothing was written.
    """
    prefixes = _prefixes(output, options)
    check_outputs([file for prefix in prefixes for file in files_of_set(prefix)], options.overwrite)
    tokenizer = _checked_tokenizer(tokenizer_path, options)
    found = list_inputs(inputs, options.read)
    for line in found.report():
        say(line)
    count = min(options.workers or len(os.sched_getaffinity(0)), found.bytes // PROCESS_BYTES + 1)
    with Workers(count) as workers:
        facts = _facts(workers, tokenizer, options)
        rules = _rules(tokenizer, facts, options)
        if rules.chats is not None:
            workers.run(check_template, tokenizer, rules.chats)
        summary = Summary({}, {}, rules.dtype, facts.vocab_size, facts.begin, facts.end, facts.drops_characters)
        with IndexedWriter(prefixes[0], rules.dtype, rules.masked) as train:
            _write_documents(train, found, rules, options, workers, summary)
            if not train.lengths:
                raise DataError(f"no text in {', '.join(map(printable, inputs))}: {summary.left_out.summary()}")
            _publish(train, prefixes, options.validation_fraction, summary, rules.masked)
    return summary


def _prefixes(output: Path, options: BuildOptions) -> list[Path]:
    if not 0 <= options.validation_fraction < 1:
        raise DataError(f"--validation-fraction {options.validation_fraction} is not in [0, 1)")
    if not output.name:
        raise DataError(f"--output {printable(output)} names no file: give the path of the set without .bin and .idx")
    if options.validation_fraction > 0:
        return [_named(output, "-train"), _named(output, "-validation")]
    return [output]


def _named(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _checked_tokenizer(path: Path | None, options: BuildOptions) -> Path | None:
    size = options.vocab_size
    if options.read.chats:
        _check_chats(path, options)
    if path is not None:
        if size is not None:
            raise DataError("--vocab-size is for token ids without a tokenizer: leave it out, the tokenizer tells it")
        return tokenizer_file(path)
    if size is None:
        raise DataError("--tokenizer is missing. For documents that are token ids, --vocab-size can stand for it")
    if not 1 <= size <= MOST_IDS + 1:
        raise DataError(f"--vocab-size {size} is not between 1 and {MOST_IDS + 1}")
    if options.append_eos or options.prepend_bos or options.eos_token or options.bos_token:
        raise DataError("tokens in front of documents and behind them are the tokenizer's: give --tokenizer, too")
    return None


def _check_chats(path: Path | None, options: BuildOptions) -> None:
    if path is None:
        raise DataError("--tokenizer is missing: chats become tokens by its chat template")
    if options.append_eos is not None or options.prepend_bos or options.eos_token or options.bos_token:
        raise DataError("the chat template says what stands around a chat: leave out the options of eos and bos tokens")
    most = options.chats.max_tokens
    if most is not None and most < 1:
        raise DataError(f"--max-tokens {most} is not 1 or more")
    if options.chats.cut and most is None:
        raise DataError("--too-long cut needs --max-tokens N, which says what is too long")


def _facts(workers: Workers, tokenizer: Path | None, options: BuildOptions) -> TokenizerFacts:
    if tokenizer is None:
        assert options.vocab_size is not None
        return TokenizerFacts(options.vocab_size, None, None, False)
    if options.read.chats:
        options = dataclasses.replace(options, append_eos=False)
    begin = options.bos_token or "" if options.prepend_bos or options.bos_token else None
    end = None if options.append_eos is False else options.eos_token or ""
    try:
        return workers.run(look_at, tokenizer, begin, end)
    except WorkerError:
        raise DataError(
            f"{printable(tokenizer)} ends the process that opens it: it is damaged, or larger than the memory"
        ) from None


def _rules(tokenizer: Path | None, facts: TokenizerFacts, options: BuildOptions) -> Rules:
    return Rules(
        tokenizer=tokenizer,
        dtype=token_type(facts.vocab_size),
        vocab_size=facts.vocab_size,
        begin=() if facts.begin is None else (facts.begin.id,),
        end=() if facts.end is None else (facts.end.id,),
        end_ids=bool(options.append_eos),
        strict=options.read.strict,
        chats=options.chats if options.read.chats else None,
    )


def _write_documents(
    train: IndexedWriter, found: Inputs, rules: Rules, options: BuildOptions, workers: Workers, summary: Summary
) -> None:
    whole: Path | None = None  # whose parts are not used, because it had to be encoded in one
    tasks = tasks_of(pieces_of(found, options.read, lambda path, size: workers.run(survey, rules, path, size)))
    with tqdm(total=found.bytes, unit="B", unit_scale=True, desc="tokenizing", disable=None) as bar:
        for pieces, result in workers.map(functools.partial(tokenize, rules), tasks):
            part = pieces[0]
            bar.update(sum(piece.weight for piece in pieces))
            if not isinstance(part, TextPart):
                train.append(result.tokens, result.lengths, result.mask)
                summary.left_out.merge(result.left_out)
            elif result.inseparable and whole != part.path:
                train.abandon_document()
                whole = part.path
                again = workers.run(tokenize, rules, [TextFile(part.path, part.size)])
                train.append(again.tokens, again.lengths)
            elif whole != part.path:
                train.extend_document(result.tokens)
                if part.last:
                    train.close_document()
            if isinstance(part, TextPart) and part.last:
                whole = None


def _publish(train: IndexedWriter, prefixes: list[Path], fraction: float, summary: Summary, masked: bool) -> None:
    documents = len(train.lengths)
    held_back = max(1, round(documents * fraction)) if len(prefixes) > 1 else 0
    if held_back >= documents:
        raise DataError(
            f"--validation-fraction {fraction} of {documents} documents leaves none to train on. Give more documents "
            "(--split-on-blank-lines makes many of one .txt file), or a smaller fraction"
        )
    if held_back:
        with train.split_off(held_back, prefixes[1]) as validation:
            summary.sets[prefixes[0]] = (documents - held_back, train.tokens)
            summary.sets[prefixes[1]] = (held_back, validation.tokens)
            summary.trained |= {prefixes[0]: train.trained, prefixes[1]: validation.trained} if masked else {}
            validation.publish()
    else:
        summary.sets[prefixes[0]] = (documents, train.tokens)
        summary.trained |= {prefixes[0]: train.trained} if masked else {}
    train.publish()

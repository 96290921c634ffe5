"""Text of `conclave generate` and `conclave chat`: streamed, ended by stop words, of conversations.

Oracle: Transformers' `decode` of all tokens at once, `apply_chat_template`, and greedy `generate` on the same model.
"""

from __future__ import annotations

import json
import random
import subprocess

import pytest
import torch
from conclave.generated_text import GrowingText, StopWords
from ranks import PATIENCE_SECONDS, program, run_ranks, succeed, without_launcher
from small_job import SmallJob, write_tokens
from small_tokenizer import SPECIAL, speaking_model, tokenizer

FP32 = ["--set", "precision.compute=fp32", "--set", "run.device=cpu"]


def decoded(ids: list[int]) -> str:
    return tokenizer().decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def pieces_of(prompt: list[int], ids: list[int], stop_words: list[str]) -> tuple[list[str], bool]:
    text = GrowingText(tokenizer(), prompt, stop_words)
    pieces = []
    for token in ids:
        pieces.append(text.append(token))
        if text.is_stopped:
            break
    pieces.append(text.rest())
    return pieces, text.is_stopped


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_the_text_of_all_tokens(seed):
    """Of whole characters in pieces, and of bytes that are no characters."""
    chance = random.Random(seed)
    text = "".join(chance.choice("ab \n\u00e9\u6587\U0001f408") for _ in range(40))
    ids = tokenizer().encode(text)
    at = chance.randrange(1, len(ids))
    while "\ufffd" in decoded(ids[:at]):
        at += 1
    pieces, _ = pieces_of(ids[:at], ids[at:], [])
    assert "".join(pieces) == decoded(ids)[len(decoded(ids[:at])) :]
    assert not any("\ufffd" in piece for piece in pieces)
    noise = [chance.randrange(len(SPECIAL), len(tokenizer())) for _ in range(30)]
    assert "".join(pieces_of(ids[:at], noise, [])[0]) == decoded(ids[:at] + noise)[len(decoded(ids[:at])) :]


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_word_ends_the_text_before_itself(seed):
    chance = random.Random(seed)
    text = "".join(chance.choice("ab ") for _ in range(60))
    words = ["".join(chance.choice("ab ") for _ in range(length)) for length in (3, 5)] + ["zz"]
    pieces, stopped = pieces_of(tokenizer().encode("x"), tokenizer().encode(text), words)
    ends = [(text.find(word) + len(word), text.find(word)) for word in words if word in text]
    assert stopped == bool(ends)
    assert "".join(pieces) == (text[: min(ends)[1]] if ends else text)


def test_what_may_be_a_stop_word_is_held_back():
    stop = StopWords(["END"])
    assert stop.take("an E") == "an "
    assert stop.take("N") == ""
    assert stop.take("T") == "ENT"
    assert stop.take("E") == "" and stop.rest() == "E" and not stop.found
    assert stop.take("xENDy") == "x" and stop.found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return speaking_model(folder), folder


def answer_of_transformers(model, ids: list[int], tokens: int) -> list[int]:
    out = model.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return out[0, len(ids) :].tolist()


PROMPTS = ["The cat", "def f(x):\n", "na\u00efve \u6587"]


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_texts_equal_those_of_transformers(model, world, tmp_path):
    plain, folder = model
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    ended = succeed(run_ranks(world, ["generate", folder, "--prompts", file, "--json", "--max-new-tokens", "20", *FP32]))
    for prompt, line in zip(PROMPTS, map(json.loads, ended.outputs[0].splitlines()), strict=True):
        ids = tokenizer().encode(prompt)
        assert line["prompt_ids"] == ids and line["prompt_text"] == prompt
        assert line["ids"] == answer_of_transformers(plain, ids, 20)
        assert line["text"] == decoded(ids + line["ids"])[len(decoded(ids)) :]
    # As a user reads it: one prompt's text by itself.
    one = succeed(run_ranks(world, ["generate", folder, "--prompt", PROMPTS[0], "--max-new-tokens", "20", *FP32])).outputs[0]
    assert one == PROMPTS[0] + json.loads(ended.outputs[0].splitlines()[0])["text"] + "\n"


def test_stop_words_end_texts_on_all_ranks(model):
    plain, folder = model
    whole = json.loads(run_ranks(1, ["generate", folder, "--prompt", "The cat", "--json", "--max-new-tokens", "30", *FP32]).outputs[0])
    word = whole["text"][5:8]
    end = whole["text"].find(word)
    for world in (1, 2):
        ended = succeed(run_ranks(world, ["generate", folder, "--prompt", "The cat", "--prompt", "def", "--json", "--stop", word, "--max-new-tokens", "30",
                                          *FP32]))
        line = json.loads(ended.outputs[0].splitlines()[0])
        assert line["text"] == whole["text"][:end] and line["finish"] == "stop"
        assert line["ids"] == whole["ids"][: len(line["ids"])] and len(line["ids"]) < 30


def chat(folder, lines: list[str], *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run([program(), "chat", folder, "--max-new-tokens", "12", *FP32, *options], input="".join(line + "\n" for line in lines),
                           env=without_launcher(), capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended


def conversation(model, messages: list[dict], lines: list[str]) -> str:
    """What a chat prints, by Transformers."""
    shown = ""
    for line in lines:
        messages.append({"role": "user", "content": line})
        ids = tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        answer = answer_of_transformers(model, ids, 12)
        text = decoded(ids + answer)[len(decoded(ids)) :]
        messages.append({"role": "assistant", "content": text})
        shown += text + ("" if answer[-1] == tokenizer().eos_token_id else " [...]") + "\n"
    return shown


@pytest.mark.parametrize("ranks", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_chat_from_a_pipe_equals_transformers(model, ranks):
    plain, folder = model
    ended = chat(folder, ["The cat?", "", "And the dog?", "/reset", "def"], "--ranks", ranks)
    assert ended.stdout == conversation(plain, [], ["The cat?", "And the dog?"]) + conversation(plain, [], ["def"])
    system = [{"role": "system", "content": "Be a cat."}]
    ended = chat(folder, ["Hello", "/quit", "not read"], "--system", "Be a cat.", "--ranks", ranks)
    assert ended.stdout == conversation(plain, system, ["Hello"])


def test_a_model_without_a_template_does_not_chat(model, tmp_path):
    _, folder = model
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).symlink_to(file)
    for ranks in ("1", "2"):
        ended = chat(tmp_path, ["Hello"], "--ranks", ranks, code=2)
        assert ended.stderr.count("has no chat template") == 1, ended.stderr


def test_runs_and_checkpoints_generate_and_training_shows_texts(model, tmp_path):
    """The texts of a run at its last validation are those that its checkpoint, its folder and its export give."""
    _, folder = model
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    ids = tokenizer().encode("The cat sat on the mat. The dog sat on the log. " * 60)
    write_tokens(tmp_path / "tokens", [ids])
    job = SmallJob(tmp_path, {"model.init_from": str(folder), "run.steps": 4, "validation.every": 2, "data.validation": str(tmp_path / "tokens"),
                              "validation.samples": 2, "validation.prompts": ["The cat", "def f"], "validation.temperature": 0,
                              "validation.prompt_tokens": 10, "checkpoint.every": 2, "metrics.tensorboard": True, "parallel.expert_parallel_degree": 2})
    plain = job.with_keys({"validation.prompts": None, "run.output_dir": str(tmp_path / "plain")})
    job.must_run(2)
    plain.must_run(2)
    numbers = [[record[key] for key in ("loss", "grad_norm", "step")] for record in job.metrics()]
    assert numbers == [[record[key] for key in ("loss", "grad_norm", "step")] for record in plain.metrics()]
    assert ["sample/0" in record for record in job.metrics()] == [False, True, False, True]
    exported = job.must_export(tmp_path / "export")
    for source in (job.output, job.output / "checkpoints" / "step-00000004", exported):
        ended = succeed(run_ranks(2, ["generate", source, "--prompt", "The cat", "--prompt", "def f", "--json", "--max-new-tokens", "10", *FP32]))
        lines = [json.loads(line) for line in ended.outputs[0].splitlines()]
        assert [line["prompt_text"] + line["text"] for line in lines] == [job.metrics()[-1][f"sample/{i}"] for i in range(2)]
    text = job.metrics()[-1]["sample/0"]
    assert text.startswith("The cat")
    page = tmp_path / "page.html"
    subprocess.run([program(), "report", job.output, "--output", page], check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    assert "<h2>Texts</h2>" in page.read_text() and "<pre>The cat" in page.read_text()
    events = b"".join(file.read_bytes() for file in (job.output / "tensorboard").iterdir())
    assert b"sample/0" in events and text.splitlines()[0].encode() in events

"""`conclave generate` against Transformers' `generate`: the same tokens on every family, with and without ranks.

Oracle of greedy texts: `generate` of the family's own class in fp32, one prompt at a time, with its cache. The program has all prompts together, of
different lengths. Tokens are compared, so the two best logits must lie further apart than rounding at every step: other prompts are taken where the
oracle says that they do not.

Oracle of sampling: Transformers' logits processors on the logits of Transformers' model for the tokens that the program has written.
Tolerance: 1e-4 absolute of log probabilities; logits of order 10 in fp32 differ by some 1e-5 (see test_families.py), divided by a temperature.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ranks import run_ranks, succeed
from tiny_families import CASES, FAMILIES, Case, make_model
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

NEW_TOKENS = 24
CLOSEST = 2e-4  # of the two best logits, which are of order 1 to 10
LENGTHS = (1, 19, 5, 2, 11)
BASE = [case for case in CASES if case.name == "base"]
OTHERS = [case for case in CASES if case.name != "base"]


def prompts_for(model: PreTrainedModel, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, model.config.vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]


class TooClose(Exception):
    """Rounding could decide which token is the most likely."""


def generated_by_transformers(model: PreTrainedModel, prompt: list[int], **options) -> list[int]:
    out = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True, output_scores=True,
                         pad_token_id=0, **options)
    for scores in out.scores:
        best = scores[0].topk(2).values
        if best[0] - best[1] < CLOSEST:
            raise TooClose(f"two tokens are {best[0] - best[1]} apart")
    return out.sequences[0, len(prompt) :].tolist()


def prompts_and_texts(model: PreTrainedModel, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    for attempt in range(seed, seed + 10):
        prompts = prompts_for(model, attempt)
        try:
            return prompts, [generated_by_transformers(model, prompt) for prompt in prompts]
        except TooClose:
            pass
    raise AssertionError("no prompts without two tokens that are too close")


def generated(world: int, folder: Path, prompts: list[list[int]], *options: str) -> list[dict]:
    words = ["generate", folder, "--json", "--max-new-tokens", str(NEW_TOKENS), "--set", "precision.compute=fp32", "--set", "run.device=cpu", *options]
    for prompt in prompts:
        words += ["--prompt-ids", " ".join(map(str, prompt))]
    ended = succeed(run_ranks(world, words))
    assert not any(ended.outputs[1:])  # rank 0 speaks
    lines = [json.loads(line) for line in ended.outputs[0].splitlines()]
    assert [line["prompt_ids"] for line in lines] == prompts
    return lines


def check_greedy(case: Case, folder: Path) -> None:
    model = make_model(case)
    model.save_pretrained(folder)
    prompts, expected = prompts_and_texts(model, case.seed)
    assert len({tuple(text) for text in expected}) > 1
    ends = ["end" if text[-1] == model.config.eos_token_id else "length" for text in expected]
    worlds = (1, 2) if "num_experts_per_tok" in FAMILIES[case.family] else (1,)
    for world in worlds:
        lines = generated(world, folder, prompts)
        assert [line["ids"] for line in lines] == expected, f"{case} on {world} ranks"
        assert [line["finish"] for line in lines] == ends
        assert all("text" not in line for line in lines)


@pytest.mark.parametrize("case", BASE, ids=str)
def test_greedy_texts_equal_those_of_transformers(case, tmp_path):
    check_greedy(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_greedy_texts_of_every_kind_of_model(case, tmp_path):
    check_greedy(case, tmp_path)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtral")
    model = make_model(BASE[0])
    model.save_pretrained(folder)
    return model, folder


def test_a_text_does_not_depend_on_ranks_or_on_the_prompts_beside_it(mixtral):
    model, folder = mixtral
    prompts = prompts_for(model, 3)
    options = ("--temperature", "0.9", "--top-k", "30", "--seed", "5")
    together = [line["ids"] for line in generated(1, folder, prompts, *options)]
    assert together == [line["ids"] for line in generated(1, folder, prompts, *options)]
    assert together == [line["ids"] for line in generated(2, folder, prompts, *options)]
    assert together == [line["ids"] for line in generated(2, folder, prompts, *options, "--sequences", "2")]
    assert together[0] == generated(1, folder, prompts[:1], *options)[0]["ids"]
    assert together != [line["ids"] for line in generated(1, folder, prompts, *options[:-1], "6")]
    # Two prompts that are the same have texts of their own.
    twice = [line["ids"] for line in generated(1, folder, [prompts[1], prompts[1]], *options)]
    assert twice[0] != twice[1]


@pytest.mark.parametrize("sampling", [dict(temperature=1.0), dict(temperature=0.6), dict(temperature=1.7, top_k=9), dict(temperature=1.3, top_p=0.8),
                                      dict(temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.4), dict(repetition_penalty=1.6)], ids=str)
def test_distributions_are_those_of_transformers_processors(mixtral, sampling):
    model, folder = mixtral
    prompts = prompts_for(model, 4)
    words = [word for name, value in sampling.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    lines = generated(2, folder, prompts, *words, "--alternatives", str(model.config.vocab_size))
    processors = LogitsProcessorList()
    if "repetition_penalty" in sampling:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling["repetition_penalty"]))
    if "temperature" in sampling:
        processors.append(TemperatureLogitsWarper(sampling["temperature"]))
    if "top_k" in sampling:
        processors.append(TopKLogitsWarper(sampling["top_k"]))
    if "top_p" in sampling:
        processors.append(TopPLogitsWarper(sampling["top_p"]))
    drawn = 0
    for line in lines:
        ids = torch.tensor([line["prompt_ids"] + line["ids"]])
        with torch.no_grad():
            logits = model(ids).logits
        for step, alternatives in enumerate(line["alternatives"]):
            length = len(line["prompt_ids"]) + step
            expected = processors(ids[:, :length], logits[:, length - 1].clone()).log_softmax(-1)[0]
            mine = torch.full_like(expected, -torch.inf)
            for token, log_probability in alternatives:
                mine[token] = log_probability
            assert torch.equal(mine.isfinite(), expected.isfinite()), f"step {step}"
            kept = expected.isfinite()
            assert (mine - expected)[kept].abs().max() < 1e-4
            assert mine[line["ids"][step]].isfinite()
            drawn += line["ids"][step] != int(expected.argmax())
    assert (drawn > 0) == ("temperature" in sampling)


def test_generation_config_says_how_tokens_are_chosen(mixtral, tmp_path):
    model, folder = mixtral
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    prompts = prompts_for(model, 6)
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.7, "top_k": 12, "eos_token_id": [90, 2]}))
    by_file = generated(1, tmp_path, prompts, "--seed", "9")
    by_words = generated(1, folder, prompts, "--seed", "9", "--temperature", "0.7", "--top-k", "12")
    for mine, other in zip(by_file, by_words, strict=True):
        ids = other["ids"]
        ends = next((i + 1 for i, token in enumerate(ids) if token in (90, 2)), len(ids))
        assert mine["ids"] == ids[:ends]
    greedy = generated(1, tmp_path, prompts, "--temperature", "0", "--ignore-end")
    assert all(len(line["ids"]) == NEW_TOKENS for line in greedy)
    assert greedy == generated(1, folder, prompts, "--ignore-end")


def test_a_long_prompt_is_computed_in_parts(mixtral, tmp_path):
    """More tokens than a pass takes: of a model with room for them."""
    case = Case("mistral", model={"max_position_embeddings": 4096, "sliding_window": 300})
    model = make_model(case)
    model.save_pretrained(tmp_path)
    prompts = [torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(1)).tolist() for length in (2500, 7)]
    expected = [generated_by_transformers(model, prompt) for prompt in prompts]
    assert [line["ids"] for line in generated(1, tmp_path, prompts)] == expected


@pytest.mark.parametrize("words, message", [
    (["--prompt-ids", "1 2 97"], "the model's tokens are 0 to 96"),
    (["--prompt-ids", "1 two"], "must be token ids"),
    (["--prompt-ids", ""], "has no tokens"),
    (["--prompt-ids", " ".join(["5"] * 64)], "the model ends at max_position_embeddings 64"),
    (["--prompt-ids", "5", "--max-new-tokens", "64"], "--max-new-tokens is 64"),
    (["--prompt-ids", "5", "--prompt", "a"], "exclude each other"),
    ([], "there is no prompt"),
    (["--prompt", "a"], "Give its folder with --tokenizer"),
    (["--prompt-ids", "5", "--stop", "a"], "leave --stop out"),
    (["--prompt-ids", "5", "--top-k", "3"], "the temperature is 0"),
    (["--prompt-ids", "5", "--alternatives", "3"], "Add --json"),
    (["--prompts", "/nowhere/prompts.txt"], "/nowhere/prompts.txt"),
    (["--prompt-ids", "5", "--tokenizer", "/nowhere"], "holds no tokenizer"),
], ids=str)
def test_mistakes_are_refused_once(mixtral, words, message):
    for world in (1, 2):
        ended = run_ranks(world, ["generate", mixtral[1], *words])
        assert ended.codes == [2] * world, ended.text
        assert len(ended.error_lines) == 1 and message in ended.text, ended.text


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    ended = run_ranks(1, ["generate", tmp_path, "--prompt-ids", "1"])
    assert ended.codes == [2] and "neither a config.json" in ended.text, ended.text


@pytest.mark.parametrize("family, modules", [("mixtral", ["q_proj", "v_proj"]), ("deepseek_v3", ["kv_b_proj", "o_proj"])])
def test_an_adapter_of_peft_takes_part(family, modules, tmp_path):
    """Of latent attention too, whose keys and values are never expanded. Oracle: PEFT's own model."""
    peft = pytest.importorskip("peft")
    base = make_model(Case(family))
    base.save_pretrained(tmp_path / "base")
    plain = generated(1, tmp_path / "base", prompts_for(base, 1))
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager", dtype=torch.float32),
                                peft.LoraConfig(r=4, lora_alpha=8, target_modules=modules, task_type="CAUSAL_LM")).eval()
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # else zeros
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    prompts, expected = prompts_and_texts(model, 1)
    for world in (1, 2):
        assert [line["ids"] for line in generated(world, tmp_path / "adapter", prompts)] == expected
    assert expected != [line["ids"] for line in plain]

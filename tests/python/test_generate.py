"""generate() of a transformed model on ranks that want different numbers of tokens. Oracle: plain Transformers, one process for each rank's prompt."""

import time
import warnings

import pytest
import torch
import torch.distributed as dist
from test_adapters import adapted
from tiny_models import batches, tiny_model
from torch_ranks import run_torch_ranks

import conclave
from conclave import generation

NEW_TOKENS = (4, 12)  # by rank
KINDS = (dict(do_sample=False), dict(do_sample=False, num_beams=3), dict(do_sample=False, use_cache=False))


def prompt_of(rank: int):
    """Of another length on every rank, padded on the left in its first row."""
    tokens = batches(1, 2, length=5 + 3 * rank)[0, rank]
    mask = torch.ones_like(tokens)
    mask[0, : 1 + rank] = 0
    return dict(input_ids=tokens, attention_mask=mask, pad_token_id=0)


def compare(model, plain, what: str) -> None:
    rank = dist.get_rank()
    for options in KINDS:
        wanted = dict(**prompt_of(rank), max_new_tokens=NEW_TOKENS[rank], **options)
        right = plain.generate(**wanted)
        text = model.generate(**wanted)
        assert torch.equal(text, right), f"{what}, {options}: {text} instead of {right}"
        assert text.shape[1] == wanted["input_ids"].shape[1] + NEW_TOKENS[rank]


def on_two_ranks() -> None:
    plain = tiny_model("mixtral").eval()
    for degree, sharded, config in ((2, False, None), (2, True, None), (1, True, None), (1, False, None),
                                    (2, False, conclave.MoEConfig(moe_load_balancing="aux_loss")),
                                    (2, True, conclave.MoEConfig(moe_load_balancing="sinkhorn"))):
        conclave.init({"expert_parallel_degree": degree})
        model = conclave.transform(tiny_model("mixtral", output_router_logits=degree == 1), config)
        if sharded:
            conclave.fully_shard(model)
        compare(model.eval(), plain, f"degree {degree}, sharded {sharded}, {config}")
    conclave.init({"expert_parallel_degree": 2})
    compare(conclave.fully_shard(conclave.transform(adapted(tiny_model("mixtral"), "experts"))).eval(), adapted(tiny_model("mixtral"), "experts").eval(),
            "with adapters")
    # Ranks that need nobody do not wait: rank 1 generates alone.
    conclave.init({"expert_parallel_degree": 1})
    model = conclave.transform(tiny_model("mixtral")).eval()
    if dist.get_rank() == 1:
        compare(model, plain, "alone")


def test_ranks_generate_as_many_tokens_as_each_wants():
    run_torch_ranks(2, on_two_ranks)


def one_rank_fails() -> None:
    conclave.init({"expert_parallel_degree": 2})
    model = conclave.transform(tiny_model("mixtral")).eval()
    prompt = prompt_of(dist.get_rank())

    def stop(*_):
        raise ValueError("this rank alone fails")

    if dist.get_rank() == 0:
        with pytest.raises(ValueError, match="this rank alone"):
            model.generate(**prompt, max_new_tokens=4, prefix_allowed_tokens_fn=stop)
    else:
        right = tiny_model("mixtral").eval().generate(**prompt, max_new_tokens=9, do_sample=False)
        assert torch.equal(model.generate(**prompt, max_new_tokens=9, do_sample=False), right)


def test_a_rank_that_fails_leaves_the_others_their_text():
    run_torch_ranks(2, one_rank_fails)


def one_rank_is_late() -> None:
    conclave.init({"expert_parallel_degree": 2})
    model = conclave.transform(tiny_model("mixtral")).eval()
    generation.PATIENCE_SECONDS = 0.3
    if dist.get_rank() == 1:
        time.sleep(1.5)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.generate(**prompt_of(dist.get_rank()), max_new_tokens=2, do_sample=False)
    texts = [str(warning.message) for warning in said]
    assert any("generate() on rank" in text for text in texts) == (dist.get_rank() == 0), texts
    if dist.get_rank() == 0:
        assert "has waited 0 s for the other ranks. Call it on all ranks" in texts[0], texts


def test_a_rank_that_waits_for_anothers_call_says_so():
    run_torch_ranks(2, one_rank_is_late)

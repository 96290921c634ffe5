"""What a job gets that says nothing of balancing, lending and the router: which values, what the log says of them, and that they change no result they must not.

Oracles: the resolved job.yaml, the same job with the values given, and the same job on one rank.
"""

import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file
from network_hosts import hosts_of_a_network, one_rank_a_host
from small_job import SmallJob

KEYS = {"parallel.expert_parallel_degree": 2, "run.steps": 3}


def resolved(job):
    return yaml.safe_load((job.output / "job.yaml").read_text())


def numbers(job):
    return [[record[name] for name in ("step", "loss", "lm_loss", "aux_loss", "grad_norm", "expert_imbalance")] for record in job.metrics()]


def test_a_new_run_lends_experts_evens_out_each_layer_and_routes_in_fp32(tmp_path):
    job = SmallJob(tmp_path, KEYS)
    text = job.must_run(2).text
    moe = resolved(job)["moe"]
    assert (moe["overload"], moe["dispatch_chunks"], moe["aux_loss_layers"]) == ("spill", 1, "each")
    assert resolved(job)["precision"]["router"] == "fp32"
    assert "not lent" not in text
    given = job.with_keys({"run.output_dir": str(tmp_path / "given"), "moe.overload": "spill", "moe.aux_loss_layers": "each"})
    given.must_run(2)
    assert numbers(given) == numbers(job)


@pytest.mark.parametrize("keys, spans_hosts, because, chunks", [
    ({"moe.dispatcher": "all_gather"}, False, "moe.dispatcher is all_gather", 1),
    ({"moe.dispatch_chunks": 2}, False, "moe.dispatch_chunks is 2", 2),
    ({}, True, "an expert group spans hosts", 2),
], ids=["all-gather", "parts", "hosts"])
def test_where_the_default_cannot_lend_the_log_says_why(keys, spans_hosts, because, chunks, tmp_path):
    job = SmallJob(tmp_path, {**KEYS, **keys})
    if spans_hosts:
        with hosts_of_a_network(2) as hosts:
            text = job.must_run(2, **one_rank_a_host(hosts)).text
    else:
        text = job.must_run(2).text
    assert text.count(f"experts are not lent to idle ranks (moe.overload), because {because}") == 1
    assert (resolved(job)["moe"]["overload"], resolved(job)["moe"]["dispatch_chunks"]) == ("none", chunks)


def test_spill_that_was_asked_for_is_kept_across_hosts(tmp_path):
    job = SmallJob(tmp_path, {**KEYS, "moe.spill_least_rows": 1})
    with hosts_of_a_network(2) as hosts:
        assert "not lent" not in job.must_run(2, **one_rank_a_host(hosts)).text
    assert resolved(job)["moe"]["overload"] == "spill"


@pytest.mark.parametrize("keys", [{}, {"moe.moe_load_balancing": "bias"}, {"moe.dispatcher": "all_gather"}, {"moe.dispatch_chunks": 2}],
                         ids=["defaults", "another-rule", "all-gather", "parts"])
def test_the_resolved_job_is_a_job_again(keys, tmp_path):
    job = SmallJob(tmp_path, {**KEYS, **keys})
    job.must_run(2)
    again = SmallJob(tmp_path, {**{f"{section}.{key}": value for section, values in resolved(job).items() for key, value in values.items()},
                                "run.output_dir": str(tmp_path / "again")})
    again.must_run(2)
    assert numbers(again) == numbers(job)


def favour(folder, experts):
    """All tokens of the model in a Hugging Face folder now choose these experts: component 0 is 2 in every token of every layer, and the router looks at it."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "embed_tokens" in name:
            tensor[:, 0] = 2.0
        elif "o_proj" in name or name.endswith("w2.weight"):
            tensor[0] = 0.0
        elif name.endswith("gate.weight"):
            tensor[:, 0] = 0.0
            tensor[list(experts), 0] = 5.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model in a Hugging Face folder."""
    job = SmallJob(tmp_path_factory.mktemp("published"), {"run.steps": 1, "checkpoint.every": 1})
    job.must_run()
    return job.must_export(job.folder / "model")


@pytest.fixture(scope="module")
def favourites(published, tmp_path_factory):
    """A model whose tokens all go to experts 0 and 1, which one rank of two holds."""
    return favour(shutil.copytree(published, tmp_path_factory.mktemp("favourites") / "model"), (0, 1))


def test_a_published_model_keeps_the_loss_it_was_trained_with(published, tmp_path):
    losses = {}
    for layers in (None, "together", "each"):
        job = SmallJob(tmp_path, {"run.output_dir": str(tmp_path / f"{layers}"), "model.init_from": str(published), "moe.moe_aux_loss_coeff": 1.0,
                                  "moe.aux_loss_layers": layers})
        job.must_run()
        losses[layers] = numbers(job)
        assert resolved(job)["moe"]["aux_loss_layers"] == (layers or "together")
    assert losses[None] == losses["together"] != losses["each"]


def lending(folder, favourites, ranks, **keys):
    """1024 rows a step for two experts: on four ranks, where one holds both, each of the others gets 256 of them."""
    folder.mkdir()
    job = SmallJob(folder, {"run.steps": 4, "model.init_from": str(favourites), "data.sequence_length": 64, "data.micro_batch_size": 8 // ranks,
                            "optimizer.lr": 1e-4, "parallel.expert_parallel_degree": ranks, **{key.replace("__", "."): value for key, value in keys.items()}})
    job.must_run(ranks)
    return job


def test_lending_by_default_changes_no_result(favourites, tmp_path):
    one = lending(tmp_path / "one", favourites, 1)
    lent = lending(tmp_path / "lent", favourites, 4)
    at_home = lending(tmp_path / "at-home", favourites, 4, moe__overload="none")
    assert numbers(lent) != numbers(at_home), "nothing was lent: the gradient of an expert that several ranks compute is a sum in another order"
    for record, other in zip(lent.metrics(), one.metrics(), strict=True):
        assert record["lm_loss"] == pytest.approx(other["lm_loss"], rel=1e-5)
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-5)
    again = lending(tmp_path / "again", favourites, 4)
    assert numbers(again) == numbers(lent)


# ---- what a run says once


def test_a_run_that_diverges_says_so_once_and_ends_well(tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 40, "optimizer.lr": 5.0})
    text = job.must_run().text
    assert text.count("the run diverges") == 1 and "Lower optimizer.lr (5" in text
    assert "the run diverges" not in SmallJob(tmp_path, {"run.steps": 40, "run.output_dir": str(tmp_path / "well")}).must_run().text


@pytest.mark.parametrize("ranks", [1, 2])
def test_experts_that_nobody_chooses_are_named_once(ranks, favourites, tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 105, "model.init_from": str(favourites), "optimizer.lr": 1e-8, "parallel.expert_parallel_degree": ranks})
    text = job.must_run(ranks).text
    assert text.count("experts are dead") == 1
    assert "step 100: 12 of 16 experts are dead" in text and "layers 0, 1" in text and "Set moe.aux_loss_layers (together) to each" in text


def test_a_load_that_stays_uneven_is_named_once(favourites, tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 205, "model.init_from": str(favourites), "optimizer.lr": 1e-8, "moe.moe_load_balancing": "none"})
    text = job.must_run().text
    assert text.count("stays uneven") == 1 and "step 200:" in text and "4.0 times the mean" in text and "moe.moe_load_balancing (none)" in text

"""`conclave plan`: what it answers, how it refuses, and its memory against the resident memory of real runs.

Oracles: the operating system's peak resident memory (VmHWM, in metrics.jsonl); the published sizes of Mixtral; the program's own
other commands.
"""

import json
import re
import subprocess

import pytest
import yaml
from ranks import ROOT
from small_job import MODEL, PROGRAM, SmallJob, random_documents, write_tokens


def plan(*arguments, code=0):
    done = subprocess.run([PROGRAM, "plan", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def test_sinkhorns_reductions_are_counted():
    arguments = ["examples/mixtral-8x7b.yaml", "--world", 64, "--json"]
    plain, sinkhorn = (json.loads(plan(*arguments, "--set", f"moe.moe_load_balancing={rule}")) for rule in ("none", "sinkhorn"))

    def calls(answer):
        (of_world,) = [traffic["calls"] for traffic in answer["traffic"] if (traffic["axis"], traffic["operation"]) == ("world", "all_reduce")]
        return of_world

    assert calls(sinkhorn) - calls(plain) == 32 * 50  # layers x moe.sinkhorn_iterations
    assert any("sinkhorn never ends early" in line for line in sinkhorn["assumptions"])
    assert not any("sinkhorn" in line for line in plain["assumptions"])


def counted_by_hand():
    """(job, world, parameters, of a token, of a rank, their bytes), as docs/families.md counts them from the published configs."""
    page = (ROOT / "docs/families.md").read_text()
    found = re.findall(r"\]\(\.\./(examples/\S+\.yaml)\).*?\*\*the model\*\* \| \*\*([\d,]+)\*\* \| \*\*([\d,]+)\*\* \|\n\n"
                       r"On (\d+) ranks.*?([\d,]+) parameters.*?([\d,]+) bytes\s+in\s+fp32", page, re.DOTALL)
    return [(job, *(int(number.replace(",", "")) for number in (world, parameters, of_token, of_rank, size)))
            for job, parameters, of_token, world, of_rank, size in found]


def test_the_docs_count_four_models():
    jobs = sorted(job for job, *_ in counted_by_hand())
    assert jobs == [f"examples/{name}.yaml" for name in ("deepseek-v3", "gpt-oss-20b", "olmoe-1b-7b", "qwen3-30b-a3b")]


@pytest.mark.parametrize("job, world, parameters, per_token, of_rank, size", counted_by_hand())
def test_examples_of_families_have_the_sizes_that_the_docs_count(job, world, parameters, per_token, of_rank, size):
    answer = json.loads(plan(job, "--world", world, "--device", "h100-80", "--json"))
    assert (answer["parameters"], answer["parameters_per_token"], answer["parameters_of_rank"]) == (parameters, per_token, of_rank)
    at_peak = answer["classes"][0]["at_peak"]
    assert (at_peak["parameters"], at_peak["moments"], at_peak["gradients"]) == (size, 2 * size, size)
    assert answer["fits"]


@pytest.mark.parametrize("job, parameters, device", [
    ("examples/mixtral-8x7b.yaml", 46.7e9, "h100-80"),
    ("examples/mixtral-8x22b.yaml", 140.6e9, "h100-80"),
])
def test_examples_fit_their_64_gpus(job, parameters, device):
    answer = json.loads(plan(job, "--world", 64, "--device", device, "--json"))
    assert answer["parameters"] == pytest.approx(parameters, rel=2e-3)
    assert answer["fits"] and answer["left_bytes"] > 0
    ranks, = [ranks for ranks in answer["classes"] if not ranks["at_times"]]
    assert ranks["ranks"] == 64
    helping, = [ranks for ranks in answer["classes"] if ranks["at_times"]]  # experts are lent within a host
    assert helping["ranks"] == 64 // answer["degrees"]["expert"] and answer["classes"][0] is helping and helping["peak_bytes"] > ranks["peak_bytes"]
    assert ranks["at_peak"]["total"] == ranks["peak_bytes"] == sum(
        value for name, value in ranks["at_peak"].items() if name != "total")
    text = plan(job, "--world", 64, "--device", device)
    assert f"fits in {device}" in text and helping["peak_moment"] in text


def test_a_job_that_does_not_fit_is_an_answer():
    text = plan("examples/mixtral-8x7b.yaml", "--world", 8, "--device", "a100-80", "--set", "parallel.hybrid_shard_degree=4")
    assert "DOES NOT FIT in a100-80" in text and "GiB too much" in text


def test_search_gives_options_that_plan_the_same():
    arguments = ["examples/mixtral-8x7b.yaml", "--world", 64, "--device", "h100-80", "--json"]
    search = json.loads(plan(*arguments, "--search"))["search"]
    assert search["fit"] and search["too_large"]
    times = [option["time"]["step_seconds"] for option in search["fit"]]
    assert times == sorted(times)
    for option in (search["fit"][0], search["fit"][-1], search["too_large"][0]):
        again = json.loads(plan(*arguments, *(word for setting in option["settings"] for word in ("--set", setting))))
        assert again["classes"][0]["peak_bytes"] == option["peak_bytes"]
        assert again["time"]["step_seconds"] == pytest.approx(option["time"]["step_seconds"])
    text = plan("examples/mixtral-8x7b.yaml", "--world", 64, "--device", "h100-80", "--search", "--top", 3)
    assert all(f"--set {change}" in text for change in search["fit"][0]["changes"])
    (given,) = [option for option in search["fit"] if option["is_given"]]
    assert not given["changes"]


def test_a_device_of_ones_own(tmp_path):
    printed = subprocess.run([PROGRAM, "plan", "--help"], capture_output=True, text=True, timeout=60).stdout
    description = yaml.safe_load(printed[printed.index("device:  #"):])
    description["memory"]["bytes"] *= 2
    file = tmp_path / "large.yaml"
    file.write_text(yaml.safe_dump(description))
    small = json.loads(plan("examples/mixtral-8x7b.yaml", "--world", 64, "--json"))
    large = json.loads(plan("examples/mixtral-8x7b.yaml", "--world", 64, "--json", "--device", file))
    assert large["left_bytes"] - small["left_bytes"] == pytest.approx(small["device"]["bytes"], rel=1e-6)
    assert large["time"] == small["time"]


def test_the_page_has_the_reference_jobs_peak():
    page = (ROOT / "docs/plan.md").read_text()
    classes = json.loads(plan("examples/mixtral-8x7b.yaml", "--world", 64, "--json"))["classes"]
    assert len(classes) == 2
    for ranks in classes:
        assert f"**{ranks['peak_bytes'] / 2**30:.2f} GiB**" in page and ranks["peak_moment"] in page


@pytest.mark.parametrize("arguments, words", [
    (["--device", "h100"], ["--device is h100", "a100-80, cpu, h100-80 or h200-141"]),
    (["--set", "parallel.expert_parallel_degree=3"], ["parallel.expert_parallel_degree is 3", "8 experts"]),
    (["--imbalance", "0.5"], ["--imbalance"]),
    (["--set", "memory.activation_checkpoint=full"], ["Did you mean memory.activation_checkpointing?"]),
])
def test_mistakes_are_refused(arguments, words):
    text = plan("examples/mixtral-8x7b.yaml", "--world", 64, *arguments, code=2)
    assert all(word in text for word in words), text


# Resident memory: 10 % of the account, less the footprint of the program and its libraries, which a run of a tiny model with
# the same ranks measures.
SIZED = {**MODEL, "vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 5,
         "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 1024}
RUNS = [
    pytest.param(1, {"memory.activation_checkpointing": "full", "memory.activation_offloading": True, "data.micro_batch_size": 4},
                 id="one_rank_offloading"),
    pytest.param(2, {"parallel.expert_parallel_degree": 2}, id="two_ranks_expert2"),
    pytest.param(1, {}, id="one_rank", marks=pytest.mark.slow),
    pytest.param(2, {"memory.activation_checkpointing": "selective", "parallel.expert_parallel_degree": 2,
                     "parallel.reshard_after_forward": False}, id="two_ranks_kept_gathered", marks=pytest.mark.slow),
    pytest.param(2, {"parallel.hybrid_shard_degree": 1, "memory.activation_checkpointing": "full"}, id="two_replicas",
                 marks=pytest.mark.slow),
]


def run_of(folder, model, ranks, keys):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model))
    write_tokens(folder / "tokens", random_documents(count=60, length=600))
    job = SmallJob(folder, {"run.steps": 2, "data.sequence_length": 512, "data.micro_batch_size": 1, "validation.every": 1,
                            "validation.samples": 1, "data.validation": str(folder / "tokens"), "checkpoint.every": 1, "checkpoint.async": False, **keys})
    job.must_run(ranks)
    return job


@pytest.fixture(scope="module")
def footprint(tmp_path_factory):
    """Peak resident bytes of a rank that trains next to nothing, by the number of ranks."""
    measured = {}

    def of(ranks):
        if ranks not in measured:
            tiny = {**MODEL, "max_position_embeddings": 1024}
            job = run_of(tmp_path_factory.mktemp("tiny") / "job", tiny, ranks, {})
            measured[ranks] = max(record["peak_resident_bytes"] for record in job.metrics())
        return measured[ranks]

    return of


def imbalance(job, ranks):
    """Rows of the busiest rank over the mean, as the router chose: the plan cannot know it."""
    degree = job.keys.get("parallel.expert_parallel_degree", 1)
    shares = [record["expert_share"] for record in job.metrics()]
    local = len(shares[0]) // degree
    return max(degree * sum(share[place * local:(place + 1) * local]) for share in shares for place in range(degree))


@pytest.mark.parametrize("ranks, keys", RUNS)
def test_resident_memory_is_what_was_planned(tmp_path, footprint, ranks, keys):
    job = run_of(tmp_path / "sized", SIZED, ranks, keys)
    answer = json.loads(plan(job.write(), "--world", ranks, "--device", "cpu", "--json",
                             "--imbalance", max(1.0, imbalance(job, ranks))))
    planned = answer["classes"][0]["peak_bytes"]
    counted = max(record["peak_memory_bytes"] for record in job.metrics())
    resident = max(record["peak_resident_bytes"] for record in job.metrics()) - footprint(ranks)
    print(f"planned {planned / 2**20:.1f} MiB, counted {counted / 2**20:.1f}, resident beyond the footprint "
          f"({footprint(ranks) / 2**20:.1f}): {resident / 2**20:.1f}")
    # With validations and checkpoints on the way, neither of which needs more than the step.
    assert counted == pytest.approx(planned, rel=0.05)
    assert resident == pytest.approx(planned, rel=0.10)


def test_copies_for_checkpoints_are_planned_and_at_most_those_are_made(tmp_path):
    """Behind the steps: fp32 parameters and two moments, of which as much is copied as the disk has not taken before the next update."""
    job = run_of(tmp_path / "sized", SIZED, 1, {"checkpoint.async": True})
    without, with_copies = (json.loads(plan(job.write(), "--world", 1, "--device", "cpu", "--json", "--imbalance", max(1.0, imbalance(job, 1)),
                                            "--set", f"checkpoint.async={value}"))["classes"][0]["peak_bytes"] for value in ("false", "true"))
    layer = 2 * 512 + 512 * (512 + 2 * 128) + 512 * 512 + 8 * 512 + 8 * 3 * 512 * 1024
    assert with_copies - without == pytest.approx(12 * (2 * 8000 * 512 + 512 + 5 * layer), rel=1e-3)
    counted = max(record["peak_memory_bytes"] for record in job.metrics())
    assert 0.95 * without <= counted <= 1.05 * with_copies

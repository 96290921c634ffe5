"""`conclave bench`: the phases of a step add up to it, belong to the units that have them, and nothing of the run is kept.

Oracle: arithmetic on what it prints, and the layout: where a degree is 1, nothing travels on that axis. No time is compared with another machine's.
"""

import json
import re
import subprocess

import pytest
import yaml
from network_hosts import hosts_of_a_network, one_rank_a_host
from ranks import Ranks, succeed
from small_job import MODEL, PROGRAM, SmallJob

UNITS = ["embedding", "layers.0", "layers.1", "head"]


def profile_of(folder, ranks, **keys):
    job = SmallJob(folder, {"data.sequence_length": 64, "data.micro_batch_size": 4, **{key.replace("__", "."): value for key, value in keys.items()}})
    (folder / "config.json").write_text(json.dumps({**MODEL, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32}))
    ended = job.must_run(ranks, "bench step", ["--steps", 5, "--json"])
    assert not job.output.exists() or not any(job.output.iterdir()), "a benchmark writes nothing"
    return json.loads(ended.outputs[0])


@pytest.mark.parametrize("expert, shard", [(2, 0), (1, 0), (1, 1)])
def test_phases_add_up_and_follow_the_layout(expert, shard, tmp_path):
    profile = profile_of(tmp_path, 2, parallel__expert_parallel_degree=expert, parallel__hybrid_shard_degree=shard)
    assert list(profile["units"]) == UNITS and "products" not in profile["total"]
    assert 0 <= profile["unattributed_seconds"] < 0.03 * profile["step_seconds"]
    assert profile["lowest_step_seconds"] <= profile["step_seconds"] <= profile["highest_step_seconds"]
    for unit in profile["units"].values():
        assert unit["computing"] > 0
        assert unit["optimizer"] == unit["data"] == unit["offload"] == 0
    assert profile["whole_step"]["optimizer"] > 0 and profile["whole_step"]["gather"] == 0
    for phase, travels in (("gather", shard != 1), ("dispatch", expert == 2), ("reduce", True)):
        assert (profile["total"][f"{phase}_in_flight"] > 0) == travels, phase
        assert (profile["overlapped"][phase] is not None) == travels, phase
        if travels:
            assert 0 <= profile["overlapped"][phase] <= 1
    assert (profile["total"]["dispatch"] > 0) == (expert == 2)


def test_offloading_shows_where_it_waits(tmp_path):
    profile = profile_of(tmp_path, 1, memory__activation_checkpointing="full", memory__activation_offloading=True,
                         memory__activation_loading_horizon=1)
    # With a horizon of 1 the one input that leaves is waited for, both ways.
    assert profile["units"]["layers.0"]["offload"] > 0 or profile["units"]["layers.1"]["offload"] > 0
    assert profile["total"]["dispatch"] == 0


def test_the_table_has_a_row_for_each_unit(tmp_path):
    job = SmallJob(tmp_path)
    text = job.must_run(2, "bench step", ["--steps", 2]).outputs[0]
    for row in (*UNITS, "whole step", "total"):
        assert any(line.startswith(row) for line in text.splitlines()), text
    assert "in no phase" in text and "behind computation" in text


def test_kernels_divide_the_computing(tmp_path):
    job = SmallJob(tmp_path, {"data.sequence_length": 64, "data.micro_batch_size": 4, "parallel.expert_parallel_degree": 2})
    profile = json.loads(job.must_run(2, "bench step", ["--steps", 3, "--profile", "--json"]).outputs[0])
    assert 0 <= profile["unattributed_seconds"] < 0.03 * profile["step_seconds"]
    layer = profile["units"]["layers.0"]
    for phase in ("products", "attention", "permute", "kernels", "computing"):
        assert layer[phase] > 0, phase
    assert profile["units"]["embedding"]["products"] == 0 and profile["units"]["head"]["attention"] == 0
    text = job.must_run(2, "bench step", ["--steps", 2, "--profile"]).outputs[0]
    assert re.search(r"^unit +computing +products +attention +permute +kernels +gather", text, re.MULTILINE), text


def test_no_memory_is_asked_of_the_system_once_every_buffer_is_there(tmp_path):
    # Even routing: every step needs the same sizes. Its logits alone are 4 MiB.
    job = SmallJob(tmp_path, {"data.sequence_length": 512, "data.micro_batch_size": 2, "parallel.expert_parallel_degree": 2,
                              "moe.moe_load_balancing": "balanced"})
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, "hidden_size": 128, "intermediate_size": 512, "head_dim": 32, "vocab_size": 1024, "max_position_embeddings": 512}))
    first, later = (json.loads(job.must_run(2, "bench step", ["--steps", 4, "--untimed", untimed, "--json"]).outputs[0]) for untimed in (0, 2))
    assert first["fresh_allocations"] > 0
    assert later["fresh_allocations"] == 0


def test_a_layer_is_one_of_the_step(tmp_path):
    job = SmallJob(tmp_path, {"data.sequence_length": 64, "data.micro_batch_size": 4, "parallel.expert_parallel_degree": 2})
    times = json.loads(job.must_run(2, "bench layer", ["--steps", 3, "--json"]).outputs[0])
    assert times["layers"] == len([name for name in json.loads(job.must_run(2, "bench step", ["--steps", 1, "--json"]).outputs[0])["units"] if "layers." in name])
    assert times["tokens"] == 256
    assert times["seconds"] == pytest.approx(sum(times["phases"].values()))
    assert times["phases"]["products"] > 0 and times["phases"]["dispatch"] > 0 and times["phases"]["optimizer"] == 0
    text = job.must_run(2, "bench layer", ["--steps", 1]).outputs[0]
    assert re.search(r"^one of \d+ decoder layers, forward and backward of 256 tokens a rank: [\d.]+ s", text, re.MULTILINE), text
    assert re.search(r"^products +[\d.]+ s +[\d.]+ %$", text, re.MULTILINE), text


def test_products_are_those_of_the_step(tmp_path):
    job = SmallJob(tmp_path, {"data.sequence_length": 64, "data.micro_batch_size": 4, "parallel.expert_parallel_degree": 2})
    times = json.loads(job.must_run(2, "bench products", ["--repeats", 3, "--json"]).outputs[0])
    products = {product["name"]: product for product in times["products"]}
    tokens, layers = 64 * 4, MODEL["num_hidden_layers"]
    # Oracle: each of the E experts gets tokens x ranks x top-k / E rows, and a rank has half of the experts.
    gate_up = products["experts, gate and up"]
    assert gate_up["rows"] == tokens * 2 * MODEL["num_experts_per_tok"] // MODEL["num_local_experts"]
    assert gate_up["times"] == layers * MODEL["num_local_experts"] // 2
    assert (gate_up["inner"], gate_up["columns"]) == (MODEL["hidden_size"], 2 * MODEL["intermediate_size"])
    assert (products["head"]["rows"], products["head"]["columns"]) == (tokens, MODEL["vocab_size"])
    # Causal: query q of 64 sees q + 1 keys, 32.5 in the mean.
    scores, heads, kv_heads = products["attention scores"], MODEL["num_attention_heads"], MODEL["num_key_value_heads"]
    assert (scores["rows"], scores["columns"], scores["times"]) == (64 * heads // kv_heads, 33, layers * 4 * kv_heads)
    seconds = sum(product[part] for product in times["products"] for part in ("forward", "input_gradient", "weight_gradient"))
    assert times["products_seconds"] == pytest.approx(seconds)
    assert times["optimizer_seconds"] == pytest.approx(times["optimizer_bytes"] / times["copy_bytes_per_second"])
    assert "one pass of AdamW" in job.with_keys({"parallel.expert_parallel_degree": 1}).must_run(1, "bench products", ["--repeats", 1]).outputs[0]


def test_collectives_are_those_of_the_layout(tmp_path):
    job = SmallJob(tmp_path, {"data.sequence_length": 64, "data.micro_batch_size": 4, "parallel.expert_parallel_degree": 2})
    timed = json.loads(job.must_run(2, "bench collectives", ["--repeats", 3, "--json"]).outputs[0])["collectives"]
    assert [(one["axis"], one["operation"]) for one in timed] == [
        ("shard", "all_gather"), ("shard", "reduce_scatter"), ("expert", "all_to_all"), ("world", "all_reduce")]
    # Half of a rank's tokens x top-k rows go to the other one: hidden elements and a weight of 4 bytes each, in steps of 16 bytes.
    rows = 64 * 4 * MODEL["num_experts_per_tok"] // 2
    assert timed[2]["bytes"] == rows * ((MODEL["hidden_size"] * 4 + 4 + 15) // 16 * 16)
    assert all(one["bytes_per_second"] == pytest.approx(one["bytes"] / one["seconds"]) for one in timed)
    assert "nothing travels" in job.with_keys({"parallel.expert_parallel_degree": 1}).must_run(1, "bench collectives", ["--repeats", 1]).outputs[0]


def test_a_machines_description_plans_a_job(tmp_path):
    """Two ranks of one host: the network between hosts is not measured, and the file says so. What was measured is positive and no more than the peak."""
    file = tmp_path / "machine.yaml"
    succeed(Ranks(2, ["bench", "machine", "--steps", "3", "--output", str(file)]).wait(300))
    text = file.read_text()
    assert text.startswith("# Measured by `conclave bench machine` with 2 ranks, 2 on a host.\n") and "All ranks were on one host" in text
    device = yaml.safe_load(text)
    assert device["device"]["kind"] == "cpu" and device["network"]["ranks_per_node"] == 2
    assert all(0 < device["compute"][f"{what}_efficiency"] <= 1 for what in ("product", "attention"))
    assert device["compute"]["fp32_flops"] > 1e9 and device["memory"]["bandwidth"] > 1e8 and device["memory"]["optimizer_bandwidth"] > 1e8
    assert device["network"]["node_bandwidth"] == device["network"]["cluster_bandwidth"] > 1e7
    job = SmallJob(tmp_path)
    planned = subprocess.run([PROGRAM, "plan", job.write(), "--world", "2", "--device", file, "--json"], capture_output=True, text=True, timeout=120)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["time"]["step_seconds"] > 0


def test_a_machine_is_measured_without_an_option_too_few(tmp_path):
    ended = Ranks(1, ["bench", "machine", "--steps", "1"]).wait()
    assert ended.codes == [2] and "--steps" in ended.text


def test_between_hosts_the_network_is_measured(tmp_path):
    with hosts_of_a_network(2) as hosts:
        places = one_rank_a_host(hosts)
        succeed(Ranks(2, ["bench", "machine", "--steps", "3", "--output", str(tmp_path / "machine.yaml")], **places).wait(300))
    text = (tmp_path / "machine.yaml").read_text()
    assert "2 ranks, 1 on a host" in text and "No two ranks were on one host" in text and "All ranks" not in text
    assert yaml.safe_load(text)["network"]["ranks_per_node"] == 1

"""`metrics.record_routing` and `conclave plan --routing`.

Oracles: a reader of the documented format that is written here; what metrics.jsonl counts by another way (shares of the experts, drops, memory);
a run without recording; a run on the layout that is planned.
"""

import json
import re
import struct
import subprocess

import numpy as np
import pytest
from ranks import ROOT
from small_job import MODEL, PROGRAM, SmallJob, random_documents, write_tokens

LAYERS, EXPERTS, CHOICES, SEQUENCE = MODEL["num_hidden_layers"], MODEL["num_local_experts"], MODEL["num_experts_per_tok"], 16


def read_routing(file):
    """{step: rows[micro-step, rank, layer, expert]}, by src/moe/routing_record.h."""
    content = file.read_bytes()
    head, _, _ = content.partition(b"\n")
    layers, experts, choices = map(int, re.fullmatch(rb"conclave routing 1, (\d+) layers, (\d+) experts, (\d+) choices", head).groups())
    at, steps = len(head) + 1, {}
    while len(content) - at >= 48:
        mark, size, step, ranks, micro_steps, tokens = struct.unpack_from("<4sIQIIQ", content, at)
        assert mark == b"step"
        if len(content) - at - 48 < size:
            break
        numbers, value, shift = [], 0, 0
        for byte in content[at + 48:at + 48 + size]:
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                numbers.append((value >> 1) ^ -(value & 1))
                value = shift = 0
        rows = np.array(numbers).reshape(layers, experts, micro_steps * ranks).cumsum(axis=2)
        rows = rows.transpose(2, 0, 1).reshape(micro_steps, ranks, layers, experts)
        assert (rows >= 0).all() and (rows.sum(axis=3) == tokens * choices).all()
        assert step not in steps
        steps[step] = rows
        at += 48 + size
    return steps


def plan(job, *arguments, code=0):
    done = subprocess.run([PROGRAM, "plan", job.write(), "--device", "cpu", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else json.loads(done.stdout) if "--json" in arguments else done.stdout


def recording(folder, keys=None):
    return SmallJob(folder, {"metrics.record_routing": True, **(keys or {})})


@pytest.mark.parametrize("ranks, keys", [
    pytest.param(1, {}, id="one_rank"),
    pytest.param(2, {"data.global_batch_size": 8, "parallel.expert_parallel_degree": 2}, id="micro_steps"),
    pytest.param(2, {"parallel.expert_parallel_degree": 2, "moe.moe_load_balancing": "sinkhorn"}, id="sinkhorn"),
    pytest.param(2, {"parallel.expert_parallel_degree": 2, "moe.moe_load_balancing": "balanced", "moe.dispatcher": "all_gather"}, id="balanced_gathering"),
    pytest.param(2, {"parallel.expert_parallel_degree": 2, "moe.moe_load_balancing": "bias", "moe.dispatch_chunks": 2}, id="bias_chunks"),
    pytest.param(2, {"parallel.expert_parallel_degree": 2, "moe.overload": "spill", "moe.spill_threshold": 1.01, "moe.spill_least_rows": 1}, id="lent_experts"),
    pytest.param(2, {"parallel.expert_parallel_degree": 2, "moe.capacity_factor": 1.0, "moe.global_token_shuffle": True}, id="capacity_shuffle"),
])
def test_every_run_records_what_its_metrics_count_and_stays_the_same(tmp_path, ranks, keys):
    plain = SmallJob(tmp_path, {**keys, "run.output_dir": str(tmp_path / "plain")})
    job = plain.with_keys({"metrics.record_routing": True, "run.output_dir": str(tmp_path / "recorded")})
    plain.must_run(ranks)
    job.must_run(ranks)
    assert not (plain.output / "routing.bin").exists()
    same = ("loss", "lm_loss", "aux_loss", "z_loss", "grad_norm", "expert_share", "drop_rate")
    assert [[record[key] for key in same] for record in plain.metrics()] == [[record[key] for key in same] for record in job.metrics()]
    steps = read_routing(job.output / "routing.bin")
    assert list(steps) == [1, 2, 3]
    for record in job.metrics():
        rows = steps[record["step"]]
        assert rows.shape == (keys.get("data.global_batch_size", 2 * ranks) // (2 * ranks), ranks, LAYERS, EXPERTS)
        count = rows.sum(axis=(0, 1))
        np.testing.assert_allclose(count / count.sum(axis=1, keepdims=True), record["expert_share_by_layer"], rtol=1e-12)
    answer = plan(job, "--world", ranks, "--routing", job.output, "--json")["routing"]
    assert answer["steps"] == answer["recorded_steps"] == 3 and answer["tokens_left_over"] == 0
    assert [step["drop_rate"] for step in answer["replayed"]] == pytest.approx([record["drop_rate"] for record in job.metrics()], abs=1e-12)
    assert (answer["lent_share"]["worst"] > 0) == (keys.get("moe.overload") == "spill")


SIZED = {**MODEL, "vocab_size": 2000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "head_dim": 64, "max_position_embeddings": 1024}


@pytest.mark.parametrize("keys", [
    pytest.param({"moe.overload": "none"}, id="none"),
    pytest.param({"memory.activation_checkpointing": "selective", "moe.overload": "spill", "moe.spill_threshold": 1.02, "moe.spill_least_rows": 1}, id="lent_experts"),
    pytest.param({"memory.activation_checkpointing": "full", "data.global_batch_size": 4, "moe.overload": "none"}, id="full_micro_steps"),
])
def test_memory_of_a_recorded_run_is_the_replayed_one(tmp_path, keys):
    (tmp_path / "config.json").write_text(json.dumps(SIZED))
    write_tokens(tmp_path / "tokens", random_documents(count=60, length=600))
    job = recording(tmp_path, {"data.sequence_length": 512, "data.micro_batch_size": 1, "parallel.expert_parallel_degree": 2, **keys})
    job.must_run(2)
    answer = plan(job, "--world", 2, "--routing", job.output / "routing.bin", "--json")
    measured = max(record["peak_memory_bytes"] for record in job.metrics())
    assert answer["routing"]["peak_bytes"]["worst"] == pytest.approx(measured, rel=0.02)
    if keys["moe.overload"] == "spill":  # room for an expert of another rank is in the peak that a plan prints without any record
        helper = [ranks for ranks in answer["classes"] if ranks["at_times"]]
        assert helper and answer["classes"][0]["peak_bytes"] == pytest.approx(measured, rel=0.05)


def test_replay_on_another_layout_is_a_run_there(tmp_path):
    """Four sequences a step on 4 ranks, then on 2 with twice as many each, and on one: sources come together, and no row is guessed."""
    on_four = recording(tmp_path, {"data.micro_batch_size": 1, "parallel.expert_parallel_degree": 4, "run.steps": 2})
    on_four.must_run(4)
    rows_of_four = read_routing(on_four.output / "routing.bin")
    for ranks in (2, 1):
        there = on_four.with_keys({"data.micro_batch_size": 4 // ranks, "parallel.expert_parallel_degree": ranks, "run.output_dir": str(tmp_path / f"out{ranks}")})
        there.must_run(ranks)
        rows = read_routing(there.output / "routing.bin")
        np.testing.assert_array_equal(rows[1], rows_of_four[1].reshape(1, ranks, 4 // ranks, LAYERS, EXPERTS).sum(axis=2))
        replayed, run = (plan(there, "--world", ranks, "--routing", folder, "--json")["routing"] for folder in (on_four.output, there.output))
        assert replayed["replayed"][0] == run["replayed"][0]
        # Rounding moves hardly a choice in the second step.
        assert replayed["peak_bytes"]["worst"] == pytest.approx(run["peak_bytes"]["worst"], rel=0.02)
    # More ranks than were recorded: sequences are cut.
    answer = plan(on_four.with_keys({"data.sequence_length": 8}), "--world", 8, "--routing", on_four.output, "--json")["routing"]
    assert answer["steps"] == 2 and answer["tokens_left_over"] == 0


def test_many_steps_are_sampled_and_the_worst_is_found(tmp_path):
    job = recording(tmp_path, {"run.steps": 30, "parallel.expert_parallel_degree": 2, "moe.overload": "none", "moe.moe_load_balancing": "none"})
    job.must_run(2)
    every = plan(job, "--world", 2, "--routing", job.output, "--routing-steps", 0, "--json")["routing"]
    some = plan(job, "--world", 2, "--routing", job.output, "--routing-steps", 10, "--json")["routing"]
    assert len(every["replayed"]) == 30 and len(some["replayed"]) <= 10 and some["evenly_spread"] == 5
    assert some["imbalance"]["worst"] == every["imbalance"]["worst"] and some["imbalance"]["worst_step"] == every["imbalance"]["worst_step"]
    values = sorted(step["step_seconds"] for step in every["replayed"])
    assert [every["step_seconds"][key] for key in ("median", "p90", "p99", "worst")] == [values[14], values[26], values[29], values[29]]
    text = plan(job, "--world", 2, "--routing", job.output, "--routing-steps", 10)
    assert "30 steps (1 to 30) are 30 steps of this job" in text and "--routing-steps 0 runs all" in text


def test_killed_resumed_and_gone_back_a_run_has_each_step_once(tmp_path):
    job = recording(tmp_path, {"checkpoint.every": 2, "run.steps": 400, "checkpoint.keep": 100})
    with job.start(1) as run:
        run.wait_until(job.has_steps(5), "five steps are done")
        run.kill()
    file = job.output / "routing.bin"
    before = read_routing(file)
    assert len(before) >= 5
    with open(file, "ab") as out:
        out.write(b"step\x10\0\0")  # what a kill in the middle of a write leaves
    assert plan(job, "--world", 1, "--routing", file, "--json")["routing"]["unfinished_bytes"] == 7
    last = int(job.checkpoints[-1].removeprefix("step-"))
    job.with_keys({"run.steps": last + 3, "checkpoint.allow_changed": "run.steps"}).must_run(1)
    steps = read_routing(file)
    assert list(steps) == list(range(1, last + 4))
    assert all((steps[step] == before[step]).all() for step in range(1, last + 1))
    assert plan(job, "--world", 1, "--routing", file, "--json")["routing"]["unfinished_bytes"] == 0
    # Going back cuts, also without recording; what was there is kept beside.
    older = job.output / "checkpoints/step-00000002"
    job.with_keys({"run.steps": 3, "checkpoint.allow_changed": "run.steps", "checkpoint.resume": str(older), "metrics.record_routing": False}).must_run(1)
    assert list(read_routing(file)) == [1, 2]
    assert list(read_routing(job.output / "checkpoints/abandoned-1/routing.bin")) == list(range(1, last + 4))


def test_what_is_no_record_is_put_aside(tmp_path):
    job = recording(tmp_path, {"checkpoint.every": 1, "run.steps": 1})
    job.must_run(1)
    (job.output / "routing.bin").write_text("someone's notes")
    job.with_keys({"run.steps": 2, "checkpoint.allow_changed": "run.steps"}).must_run(1)
    assert list(read_routing(job.output / "routing.bin")) == [2]
    assert (job.output / "routing.bin.1").read_text() == "someone's notes"


def test_mistakes_are_refused_by_name_and_place(tmp_path):
    job = recording(tmp_path)
    job.must_run(1)
    file = job.output / "routing.bin"
    content = file.read_bytes()
    (tmp_path / "empty").mkdir()

    def refused(*arguments):
        text = plan(job, "--world", 1, *arguments, code=2)
        assert "Traceback" not in text
        return text

    assert "recorded no routing (metrics.record_routing)" in refused("--routing", tmp_path / "empty")
    assert "cannot be read" in refused("--routing", tmp_path / "nothing.bin")
    assert "is not a record of routing" in refused("--routing", job.output / "metrics.jsonl")
    assert "one step of the job has" in refused("--routing", file, "--set", "data.global_batch_size=1000")
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, "num_local_experts": 4}))
    assert "2 layers, 8 experts and 2 choices" in refused("--routing", file)
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    middle = len(content) * 2 // 3
    file.write_bytes(content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1:])
    text = refused("--routing", file)
    assert str(file) in text and "The file is damaged" in text and ("step" in text or "byte" in text)

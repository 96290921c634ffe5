"""Runs that are stopped, by signals or by the loss of a rank, and go on: as themselves, as a changed job, on other ranks.

Oracle: the same job without the stop, bit for bit on the same layout; docs/errors.md for the exit codes. On another layout sums have another order; see
LAYOUT_TOLERANCE in tests/invariance/test_layouts.py for the tolerance.
"""

import hashlib
import os
import re
import signal
import sys

import pytest
from ranks import process_of_rank, succeed
from small_job import SmallJob, random_documents, write_tokens

CODES = {signal.SIGTERM: 4, signal.SIGINT: 5, signal.SIGUSR1: 6}
ENDLESS = {"run.steps": 100000, "checkpoint.every": 100000, "parallel.expert_parallel_degree": 2}
LAYOUT_TOLERANCE = 1e-5


def numbers(records):
    return [(record["step"], record["loss"], record["grad_norm"], record["lr"], record["skipped"]) for record in records]


def weights(job, **keys):
    job = job.with_keys({"parallel.expert_parallel_degree": 1, **keys})
    job.must_export(job.folder / "export")
    return hashlib.sha256((job.folder / "export/model.safetensors").read_bytes()).hexdigest()


def run_whole(folder, steps, keys, ranks=2):
    """The same job, never stopped."""
    folder.mkdir()
    job = SmallJob(folder, {**ENDLESS, **keys, "run.steps": steps})
    job.must_run(ranks)
    return job


def stopped_step(job):
    (name,) = job.checkpoints
    return int(name.removeprefix("step-"))


# ---- signals


@pytest.mark.parametrize("number, receivers", [
    (signal.SIGUSR1, [1]), pytest.param(signal.SIGTERM, [0, 1], marks=pytest.mark.slow), pytest.param(signal.SIGINT, [0], marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, [1], marks=pytest.mark.slow)])
def test_a_signal_ends_the_run_after_a_step_with_a_checkpoint(number, receivers, tmp_path):
    job = SmallJob(tmp_path, ENDLESS)
    ranks = job.start(2)
    ranks.wait_until(job.has_steps(5), "step 5")
    ranks.signal(number, receivers)
    ended = ranks.wait()
    assert ended.codes == [CODES[number]] * 2, ended.text
    step = stopped_step(job)
    assert f"{number.name} ended the run after step {step}" in ended.text and len(job.metrics()) == step
    # It goes on, to the end of another two steps, as the run that was not stopped.
    job = job.with_keys({"run.steps": step + 2})
    assert f"going on after step {step}" in job.must_run(2).text
    whole = run_whole(tmp_path / "whole", step + 2, {})
    assert numbers(job.metrics()) == numbers(whole.metrics())
    assert weights(job) == weights(whole)


def test_without_checkpoints_a_signal_saves_nothing_and_says_so(tmp_path):
    job = SmallJob(tmp_path, {**ENDLESS, "checkpoint.every": 0})
    ranks = job.start(2)
    ranks.wait_until(job.has_steps(3), "step 3")
    ranks.signal(signal.SIGTERM)
    ended = ranks.wait()
    assert ended.codes == [4, 4] and "nothing was saved, for checkpoint.every and checkpoint.every_minutes are 0" in ended.text, ended.text
    assert job.checkpoints == []


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_the_launcher_passes_signals_on(number, tmp_path):
    job = SmallJob(tmp_path, ENDLESS)
    launcher = job.start(1, arguments=["--ranks", 2])
    launcher.wait_until(job.has_steps(5), "step 5")
    launcher.signal(number)
    ended = launcher.wait()
    assert ended.codes == [CODES[number]] and len(job.checkpoints) == 1, ended.text
    assert "rank 1" not in ended.text and "lost" not in ended.text, ended.text


# ---- torchrun


def torchrun(ranks, *options):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options, "--no-python"]


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_rank(tmp_path):
    keys = {"run.steps": 400, "checkpoint.every": 20, "parallel.expert_parallel_degree": 2}
    job = SmallJob(tmp_path, keys)
    launcher = job.start(1, launcher=torchrun(2, "--max-restarts=1"))
    launcher.wait_until(job.has_steps(50), "step 50")
    os.kill(process_of_rank(str(job.folder), 1), signal.SIGKILL)
    ended = launcher.wait()
    assert ended.codes == [0] and "going on after step" in ended.text, ended.text
    whole = run_whole(tmp_path / "whole", 400, {"checkpoint.every": 0})
    assert numbers(job.metrics()) == numbers(whole.metrics())


@pytest.mark.slow
def test_torchrun_passes_sigterm_on(tmp_path):
    job = SmallJob(tmp_path, ENDLESS)
    launcher = job.start(1, launcher=torchrun(2))
    launcher.wait_until(job.has_steps(5), "step 5")
    launcher.signal(signal.SIGTERM)
    ended = launcher.wait()
    assert ended.codes != [0] and len(job.checkpoints) == 1 and "SIGTERM ended the run after step" in ended.text, ended.text


# ---- other ranks


def close(records, expected):
    assert [record["step"] for record in records] == [record["step"] for record in expected]
    for record, other in zip(records, expected):
        assert record["lm_loss"] == pytest.approx(other["lm_loss"], rel=LAYOUT_TOLERANCE, abs=0), record["step"]


# Without the balancing loss, which spans the tokens of a micro-step, a step means the same however it is divided into micro-steps.
ELASTIC = {"parallel.elastic": True, "parallel.expert_parallel_degree": 4, "data.micro_batch_size": 4, "data.global_batch_size": 12,
           "moe.moe_load_balancing": "none", "checkpoint.every": 4, "run.timeout_seconds": 60}


@pytest.fixture(scope="module")
def on_four(tmp_path_factory):
    job = SmallJob(tmp_path_factory.mktemp("four"), {**ELASTIC, "run.steps": 12})
    job.must_run(4)
    return job.metrics()


def test_elastic_jobs_fit_themselves_to_the_ranks_there_are(on_four, tmp_path):
    job = SmallJob(tmp_path, ELASTIC)
    fits = {4: ("expert_parallel_degree", None, 3), 2: ("expert_parallel_degree", 2, 3), 3: ("expert_parallel_degree", 1, 4), 1: ("expert_parallel_degree", 1, 4)}
    for number, (ranks, (key, degree, micro_batch)) in enumerate(fits.items(), 1):
        ended = job.with_keys({"run.steps": 3 * number, "checkpoint.every": 3}).must_run(ranks)
        assert degree is None or f"{key} is {degree} on {ranks} ranks instead of 4" in ended.text, ended.text
        assert micro_batch == 4 or f"micro_batch_size is {micro_batch} on {ranks} ranks instead of 4" in ended.text, ended.text
    close(job.metrics(), on_four)


def test_elastic_needs_a_global_batch_size(tmp_path):
    keys = {key: value for key, value in ELASTIC.items() if key != "data.global_batch_size"}
    ended = SmallJob(tmp_path, keys).run(2)
    assert ended.codes == [2, 2] and "parallel.elastic is true, but there is no data.global_batch_size" in ended.text, ended.text


def test_ranks_that_do_not_divide_the_batch_are_refused(tmp_path):
    ended = SmallJob(tmp_path, {**ELASTIC, "data.global_batch_size": 16}).run(3)
    assert ended.codes == [2] * 3 and "data.global_batch_size is 16" in ended.text, ended.text


@pytest.mark.slow
def test_torchrun_starts_again_with_other_ranks(on_four, tmp_path):
    job = SmallJob(tmp_path, {**ELASTIC, "run.steps": 6, "checkpoint.every": 3})
    for steps, ranks in ((6, 4), (12, 2)):
        ended = job.with_keys({"run.steps": steps}).start(1, launcher=torchrun(ranks)).wait()
        assert ended.codes == [0], ended.text
    close(job.metrics(), on_four)


# ---- exact resume, stop by stop


@pytest.mark.parametrize("background", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["async", "sync"])
@pytest.mark.parametrize("every", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_stopped_at_any_step_a_run_goes_on_bit_for_bit(background, every, tmp_path):
    # Micro-steps, warm-up, a falling learning rate, clipping: all that depends on where a run stands.
    keys = {"checkpoint.async": background, "checkpoint.keep": 100, "data.global_batch_size": 8, "data.micro_batch_size": 2, "schedule.kind": "cosine",
            "schedule.warmup_steps": 3, "optimizer.grad_clip": 0.5, "run.steps": 8}
    whole = run_whole(tmp_path / "whole", 8, keys)
    (tmp_path / "stopped").mkdir()
    job = SmallJob(tmp_path / "stopped", {**ENDLESS, **keys, "checkpoint.every": every})
    job.must_run(2)
    assert numbers(job.metrics()) == numbers(whole.metrics())  # saving changes nothing
    for step in (7, 3, 1):
        name = f"step-{step:08}"
        if name not in job.checkpoints:
            continue
        for later in job.checkpoints:
            if later > name:
                for file in (job.output / "checkpoints" / later).iterdir():
                    file.unlink()
                (job.output / "checkpoints" / later).rmdir()
        assert f"going on after step {step}" in job.must_run(2).text
        assert numbers(job.metrics()) == numbers(whole.metrics())
    assert weights(job) == weights(whole)


def test_steps_that_were_skipped_in_a_row_are_counted_over_a_stop(tmp_path):
    # A weight that is not a number makes every step skipped: two before the stop, and the third one ends the job.
    from safetensors.numpy import load_file, save_file

    (tmp_path / "weights").mkdir()
    start = SmallJob(tmp_path / "weights", {"run.steps": 1, "checkpoint.every": 1})
    start.must_run()
    start.must_export(tmp_path / "weights/export")
    tensors = load_file(tmp_path / "weights/export/model.safetensors")
    tensors["model.norm.weight"].flat[0] = float("nan")
    save_file(tensors, tmp_path / "weights/export/model.safetensors")

    (tmp_path / "run").mkdir()
    job = SmallJob(tmp_path / "run", {"run.steps": 2, "checkpoint.every": 2, "optimizer.max_skipped_steps": 3,
                                      "model.init_from": str(tmp_path / "weights/export")})
    job.must_run()
    ended = job.with_keys({"run.steps": 9}).run()
    assert ended.codes == [1] and "3 steps in a row were not finite" in ended.text and "the last one step 3" in ended.text, ended.text


# ---- a job that changed


@pytest.fixture
def stopped(tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 2, "checkpoint.every": 2, "schedule.kind": "linear"})
    job.must_run(2)
    return job


def test_every_difference_is_shown_at_once(stopped):
    ended = stopped.with_keys({"optimizer.lr": 2e-3, "optimizer.weight_decay": 0.1, "run.steps": 4, "data.sequence_length": 8}).run(2)
    assert ended.codes == [2, 2] and ended.text.count("error:") == 1, ended.text
    for line in ["optimizer.lr is 0.002, was 0.001", "optimizer.weight_decay is 0.1, was 0.2", "run.steps is 4, was 2", "data.sequence_length is 8, was 16",
                 "--set checkpoint.allow_changed=data.sequence_length,optimizer.lr,optimizer.weight_decay,run.steps"]:
        assert line in ended.text, ended.text


def test_a_change_that_is_allowed_is_said_and_gone_on_with(stopped):
    changed = stopped.with_keys({"optimizer.lr": 2e-3, "run.steps": 4})
    ended = changed.run(2, arguments=["--set", "checkpoint.allow_changed=optimizer.lr"])
    assert ended.codes == [2, 2] and "run.steps is 4, was 2" in ended.text and "optimizer.lr is 0.002" in ended.text, ended.text
    ended = changed.must_run(2, arguments=["--set", "checkpoint.allow_changed=optimizer.lr, run.steps"])
    assert "going on with a change that checkpoint.allow_changed allows: optimizer.lr is 0.002, was 0.001" in ended.text
    # What the checkpoints say from now on is the changed job.
    changed.with_keys({"run.steps": 5}).run(2)
    assert changed.must_run(2).codes == [0, 0]


def test_the_line_that_allows_all_keeps_what_was_allowed(stopped):
    changed = stopped.with_keys({"optimizer.lr": 2e-3, "run.steps": 4, "run.seed": 5})
    for allowed in ("optimizer.lr", "run.steps", "run.seed,optimizer.lr"):
        ended = changed.run(1, arguments=["--set", "data.micro_batch_size=4", "--set", f"checkpoint.allow_changed={allowed}"])
        assert ended.codes == [2], ended.text
        (line,) = re.findall(r"checkpoint.allow_changed=(\S+)", ended.text)
        assert set(line.split(",")) == {"optimizer.lr", "run.steps", "run.seed"}, ended.text
    ended = changed.must_run(1, arguments=["--set", "data.micro_batch_size=4", "--set", f"checkpoint.allow_changed={line}"])
    assert "the learning rate jumps from 1e-05 (step 2) to" in ended.text, ended.text
    assert changed.metrics()[2]["lr"] == pytest.approx(2e-3 + (1e-5 - 2e-3) * 3 / 4)


def test_a_finished_run_says_all_that_training_on_needs(stopped):
    ended = stopped.must_run(2)
    assert "all 2 steps are done already" in ended.text, ended.text
    words = re.search(r"to train on, .*(--set run.steps=4 --set checkpoint.allow_changed=run.steps)", ended.text)
    assert words, ended.text
    stopped.must_run(2, arguments=words[1].split())
    assert len(stopped.metrics()) == 4


def test_what_a_run_began_with_is_not_read_again_and_that_is_said(stopped):
    weights = stopped.must_export(stopped.folder / "weights")
    job = stopped.with_keys({"model.init_from": str(weights), "run.output_dir": str(stopped.folder / "new"), "schedule.kind": "constant"})
    ended = job.must_run(2)
    assert f"starting from the parameters of {weights}" in ended.text and "model.init_from is" not in ended.text, ended.text
    ended = job.with_keys({"run.steps": 3}).must_run(2)
    assert f"model.init_from is {weights}, but the run goes on from" in ended.text and "step-00000002" in ended.text, ended.text


@pytest.mark.parametrize("change", ["the source is left out", "another source is given"])
def test_what_a_null_stood_for_when_a_run_began_it_stands_for_later(change, stopped):
    """moe.aux_loss_layers is `together` in a run that began from a model, whether the job still says so or not; else `each`."""
    source = stopped.must_export(stopped.folder / "weights")
    began = stopped.with_keys({"model.init_from": str(source), "run.output_dir": str(stopped.folder / "new"), "schedule.kind": "constant"})
    fresh = stopped.with_keys({"schedule.kind": "constant", "checkpoint.allow_changed": "schedule.kind,run.steps"})
    if change == "the source is left out":
        began.must_run(2)
        job, layers = began.with_keys({"model.init_from": None}), "together"
    else:
        job, layers = fresh.with_keys({"model.init_from": str(source)}), "each"
    job = job.with_keys({"run.steps": 4})
    assert f"aux_loss_layers: {layers}" in succeed(job.run(1, "validate", ["--world", 2])).text
    job.must_run(2)
    assert f"aux_loss_layers: {layers}" in (job.output / "job.yaml").read_text()
    # What the job says itself counts, and must be what the run was.
    other = {"together": "each", "each": "together"}[layers]
    ended = job.with_keys({"moe.aux_loss_layers": other, "run.steps": 5}).run(2)
    assert ended.codes == [2, 2] and f"moe.aux_loss_layers is {other}, was {layers}" in ended.text, ended.text


def test_a_default_by_its_name_is_no_change(tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 2, "checkpoint.every": 2, "moe.capacity_factor": 1.5})
    job.must_run()
    job.with_keys({"run.steps": 3, "moe.drop_policy": "probability"}).must_run()
    job.with_keys({"run.steps": 4}).must_run()
    ended = job.with_keys({"run.steps": 5, "moe.drop_policy": "position"}).run()
    assert ended.codes == [2] and "moe.drop_policy is position, was probability" in ended.text, ended.text


def test_an_unknown_key_among_those_allowed(tmp_path):
    ended = SmallJob(tmp_path, {"checkpoint.allow_changed": "optimizer.ln"}).run()
    assert ended.codes == [2] and "optimizer.ln" in ended.text and "Did you mean optimizer.lr?" in ended.text, ended.text


def test_what_changes_no_result_may_change(stopped):
    folder = stopped.folder / "moved"
    folder.mkdir()
    for suffix in (".bin", ".idx"):
        (stopped.folder / f"tokens{suffix}").rename(folder / f"other{suffix}")
    changed = stopped.with_keys({"run.name": "other", "data.train": str(folder / "other"), "memory.activation_checkpointing": "full",
                                 "parallel.expert_parallel_degree": 2, "checkpoint.keep": 7, "metrics.log_every": 3, "optimizer.max_skipped_steps": 9})
    changed.must_run(2)


@pytest.mark.parametrize("change", ["other", "shorter"])
def test_data_that_changed_is_noticed_and_may_be_allowed(change, stopped):
    documents = random_documents(seed=8) if change == "other" else random_documents()[:-1]
    write_tokens(stopped.folder / "tokens", documents)
    job = stopped.with_keys({"schedule.kind": "linear"})
    ended = job.run(2)
    assert ended.codes == [2, 2] and re.search(r"data.train is .* with fingerprint [0-9a-f]{16}, was data with fingerprint", ended.text), ended.text
    job.must_run(2, arguments=["--set", "checkpoint.allow_changed=data.train"])

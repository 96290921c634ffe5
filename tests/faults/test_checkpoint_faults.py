"""What may go wrong with a checkpoint while it is written, while it lies there, and while it is read; and what that may cost: never an older checkpoint.

Oracle: a run of the same job that nothing disturbed. After each fault the same command must end with its losses, gradient norms, and weights, bit for
bit; or refuse, naming what is damaged, on all ranks alike. Faults come from outside (faults.py): nothing in the program knows of them.
"""

import json
import os
import shutil
import signal
import subprocess

import pytest
from faults import MANY
from small_job import SmallJob
from undisturbed import KEYS, RANKS, SAVED, assert_like_undisturbed, names

@pytest.fixture
def finished(undisturbed, tmp_path):
    """A copy of the undisturbed run, to be damaged."""
    shutil.copytree(undisturbed[0].folder, tmp_path / "run")
    return SmallJob(tmp_path / "run", KEYS)


# ---- SIGKILL at every stage of a save

SECOND = "step-00000004"  # the save that is hit: one checkpoint is there already
# (name, rank, operation, path, call, action, the step from which the run goes on)
STAGES = [
    ("before-anything", 1, "reserve", f"{SECOND}/rank-00001", 1, "kill", 2),
    ("before-the-first-byte", 0, "write", f"{SECOND}/rank-00000", 1, "kill", 2),
    ("within-a-shard", 1, "write", f"{SECOND}/rank-00001", 4, "tear", 2),
    ("before-fsync-of-a-shard", 0, "flush", f"{SECOND}/rank-00000", 1, "kill", 2),
    ("before-fsync-of-the-other-shard", 1, "flush", f"{SECOND}/rank-00001", 1, "kill", 2),
    ("within-the-manifest", 0, "write", f"{SECOND}/manifest", 1, "tear", 2),
    ("before-fsync-of-the-manifest", 0, "flush", f"{SECOND}/manifest", 1, "kill", 2),
    ("before-the-manifest-has-its-name", 0, "rename", f"{SECOND}/manifest", 1, "kill", 2),
    ("before-fsync-of-the-folder", 0, "flush", f".tmp-{SECOND}", 3, "kill", 2),
    ("before-rename", 0, "rename", f"checkpoints/{SECOND}", 1, "kill", 2),
    # The new checkpoint has its name, but `latest` decides: the one before, and the new one is written again.
    ("between-rename-and-latest", 0, "write", "checkpoints/latest", 2, "kill", 2),
    ("within-latest", 0, "write", "checkpoints/latest", 2, "tear", 2),
    ("before-latest-has-its-name", 0, "rename", "checkpoints/latest", 2, "kill", 2),
]
FAST_STAGES = ["within-a-shard", "before-fsync-of-a-shard", "before-rename", "between-rename-and-latest"]


@pytest.mark.parametrize("background", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["async", "sync"])
@pytest.mark.parametrize("name, rank, operation, path, call, action, goes_on_after", [
    pytest.param(*stage, id=stage[0], marks=[] if stage[0] in FAST_STAGES else pytest.mark.slow) for stage in STAGES])
def test_killed_while_saving(name, rank, operation, path, call, action, goes_on_after, background, shim, undisturbed, tmp_path):
    job = SmallJob(tmp_path, {**KEYS, "checkpoint.async": background})
    ranks = job.start(RANKS, env_of_rank={rank: shim.fault(operation, path, action, first=call)})
    ranks.processes[rank].wait(60)
    ranks.kill()  # the others too, as when a machine fails; test_lost_ranks.py is about those that live on
    ended = ranks.wait()
    assert ended.codes[rank] == -signal.SIGKILL, ended.text
    assert f"going on after step {goes_on_after}" in job.must_run(RANKS).text
    assert_like_undisturbed(job, undisturbed)


# ---- SIGKILL in the parts of a step

FUNCTIONS = {
    "forward": "conclave::DecoderLayer::forward",
    "all-to-all": "conclave::AllToAllDispatcher::begin_dispatch",
    "optimizer": "conclave::Optimizer::update",
    "backward": "conclave::DecoderLayer::backward",
}


@pytest.mark.parametrize("part", [pytest.param(part, marks=[] if part == "optimizer" else pytest.mark.slow) for part in FUNCTIONS])
def test_killed_within_a_step(part, shim, undisturbed, tmp_path):
    job = SmallJob(tmp_path, KEYS)
    # From the moment on that checkpoint 2 is published.
    ended = job.run(RANKS, env_of_rank={0: shim.death_in(FUNCTIONS[part], "rename", "checkpoints/latest")})
    assert ended.codes == [-signal.SIGKILL, 3], ended.text
    assert len(ended.error_lines) == 1 and "rank 0 is lost" in ended.error_lines[0], ended.text
    assert "going on after step 2" in job.must_run(RANKS).text
    assert_like_undisturbed(job, undisturbed)


# ---- saves that fail

FAILURES = [
    ("no-space", 1, "reserve", "step-00000004/rank-00001", "ENOSPC", "No space left on device"),
    ("bad-disk", 0, "write", "step-00000004/rank-00000", "EIO", "Input/output error"),
    ("bad-fsync", 1, "flush", "step-00000004/rank-00001", "EIO", "Input/output error"),
    ("manifest", 0, "write", "step-00000004/manifest", "ENOSPC", "No space left on device"),
    ("rename", 0, "rename", "checkpoints/step-00000004", "EIO", "Input/output error"),
]


@pytest.mark.parametrize("background", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["async", "sync"])
@pytest.mark.parametrize("rank, operation, path, action, said", [
    pytest.param(*failure[1:], id=failure[0], marks=[] if failure[0] in ("no-space", "manifest") else pytest.mark.slow) for failure in FAILURES])
def test_a_save_that_fails_costs_that_checkpoint_alone(rank, operation, path, action, said, background, shim, undisturbed, tmp_path):
    job = SmallJob(tmp_path, {**KEYS, "checkpoint.async": background})
    ended = job.must_run(RANKS, env_of_rank={rank: shim.fault(operation, path, action)})
    warnings = [line for line in ended.text.splitlines() if "step 4 was not saved" in line]
    assert len(warnings) == 1 and said in warnings[0] and "Training goes on" in warnings[0], ended.text
    if not background:  # else it may have been learned after the last step's record
        assert job.metrics()[-1]["failed_saves"] == 1
    assert_like_undisturbed(job, undisturbed, steps=[2, 6])


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_last_save_that_fails_fails_the_run_on_all_ranks(rank, shim, undisturbed, tmp_path):
    job = SmallJob(tmp_path, KEYS)
    ended = job.run(RANKS, env_of_rank={rank: shim.fault("write", f"step-00000006/rank-0000{rank}", "EIO")})
    assert ended.codes == [1, 1], ended.text
    assert len(ended.error_lines) == 1, ended.text
    assert "step 6, the last of this run, was not saved" in ended.error_lines[0] and "Input/output error" in ended.error_lines[0]
    assert "going on after step 4" in job.must_run(RANKS).text
    assert_like_undisturbed(job, undisturbed)


def test_when_only_latest_fails_the_checkpoint_is_there(shim, undisturbed, tmp_path):
    job = SmallJob(tmp_path, KEYS)
    ended = job.run(RANKS, env_of_rank={0: shim.fault("write", "checkpoints/latest", "ENOSPC", first=3)})
    assert ended.codes == [1, 1] and job.checkpoints == names(SAVED), ended.text
    # `latest` names the one before, from which the run goes on to the same end.
    assert "going on after step 4" in job.must_run(RANKS).text
    assert_like_undisturbed(job, undisturbed)


def test_short_writes_are_gone_on_with(shim, undisturbed, tmp_path):
    job = SmallJob(tmp_path, KEYS)
    job.must_run(RANKS, env_of_rank={rank: shim.fault("write", "checkpoints/", "short", last=MANY) for rank in range(RANKS)})
    assert_like_undisturbed(job, undisturbed)


@pytest.fixture
def mounted(tmp_path):
    """mount(size, options=...) puts a file system of its own at the job's folder of checkpoints."""
    folder = tmp_path / "out/checkpoints"

    def mount(*options):
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")

    yield mount
    while os.path.ismount(folder) and subprocess.run(["umount", folder]).returncode == 0:
        pass


def test_a_full_disk(mounted, undisturbed, tmp_path):
    checkpoint = undisturbed[0].output / "checkpoints/step-00000002"
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    mounted(f"size={size * 3 // 2}")  # one fits, two do not
    job = SmallJob(tmp_path, KEYS)
    ended = job.run(RANKS)
    assert ended.codes == [1, 1] and "step 4 was not saved" in ended.text, ended.text
    assert len(ended.error_lines) == 1 and "No space left on device" in ended.error_lines[0], ended.text
    assert job.checkpoints == names([2]) and len(job.metrics()) == 6
    subprocess.run(["mount", "-o", f"remount,size={size * 5}", job.output / "checkpoints"], check=True)
    assert "going on after step 2" in job.must_run(RANKS).text
    assert_like_undisturbed(job, undisturbed)


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(mounted, tmp_path):
    mounted("ro")
    job = SmallJob(tmp_path, KEYS)
    ended = job.run(RANKS)
    assert ended.codes == [2, 2], ended.text
    assert len(ended.error_lines) == 1 and "Read-only file system" in ended.error_lines[0] and "checkpoints" in ended.error_lines[0], ended.text
    assert not (job.output / "metrics.jsonl").exists()


# ---- damage to what is there


def shards(job, step=6):
    return sorted((job.output / f"checkpoints/step-{step:08}").glob("rank-*.safetensors"))


def truncate(job):
    file = shards(job)[1]
    os.truncate(file, file.stat().st_size - 8)
    return [file.name, "bytes instead of"]


def flip_a_bit(job, rank=1):
    file = shards(job)[rank]
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    return [file.name, "tensor", "do not fit their hash"]


def delete(job):
    shards(job)[0].unlink()
    return ["rank-00000.safetensors is missing"]


def swap(job):
    first, second = shards(job)
    first.rename(first.with_name("x"))
    second.rename(first)
    first.with_name("x").rename(second)
    return ["rank-0000"]


def of_an_older_checkpoint(job):
    # The same name, the same length, other content: nothing but the hashes tells.
    shutil.copyfile(shards(job, 4)[0], shards(job)[0])
    return ["rank-00000.safetensors", "do not fit their hash"]


def edit_the_manifest(job):
    file = job.output / "checkpoints/step-00000006/manifest.json"
    text = file.read_text()
    assert '"step":6' in text
    file.write_text(text.replace('"step":6', '"step":5'))
    return ["manifest.json", "does not fit its hash"]


def cut_the_manifest(job):
    file = job.output / "checkpoints/step-00000006/manifest.json"
    os.truncate(file, file.stat().st_size // 2)
    return ["manifest.json"]


DAMAGES = [truncate, flip_a_bit, delete, swap, of_an_older_checkpoint, edit_the_manifest, cut_the_manifest]


@pytest.mark.parametrize("damage", [pytest.param(damage, marks=[] if damage in (truncate, flip_a_bit, swap) else pytest.mark.slow) for damage in DAMAGES])
def test_all_ranks_fall_back_together(damage, finished, undisturbed):
    facts = damage(finished)
    ended = finished.must_run(RANKS)
    passed_over = [line for line in ended.text.splitlines() if "Passing over step-00000006" in line]
    assert len(passed_over) == 1 and all(fact in passed_over[0] for fact in facts), ended.text
    assert "going on after step 4" in ended.text
    assert_like_undisturbed(finished, undisturbed)


@pytest.mark.parametrize("damage", [flip_a_bit, pytest.param(delete, marks=pytest.mark.slow)])
@pytest.mark.parametrize("keys", [{"checkpoint.on_damage": "stop"}, {"checkpoint.resume": "PATH"}], ids=["stop", "path"])
def test_or_stop_together(damage, keys, finished):
    facts = damage(finished)
    before = finished.metrics()
    if "checkpoint.resume" in keys:
        keys = {"checkpoint.resume": str(finished.output / "checkpoints/step-00000006")}
    ended = finished.with_keys(keys).run(RANKS)
    assert ended.codes == [2, 2], ended.text
    assert len(ended.error_lines) == 1 and all(fact in ended.error_lines[0] for fact in facts), ended.text
    assert finished.checkpoints == names(SAVED) and finished.metrics() == before


def test_a_damage_that_only_rank_1_can_see(shim, finished, undisturbed):
    ended = finished.must_run(RANKS, env_of_rank={1: shim.fault("read", "step-00000006/rank-00001", "EIO", last=MANY)})
    assert "Passing over step-00000006: rank 1: " in ended.text and "Input/output error" in ended.text, ended.text
    assert "going on after step 4" in ended.text
    assert_like_undisturbed(finished, undisturbed)


def test_when_every_checkpoint_is_damaged_the_run_does_not_begin_anew(finished):
    for step in SAVED:
        (finished.output / f"checkpoints/step-{step:08}/manifest.json").unlink()
    before = finished.metrics()
    ended = finished.run(RANKS)
    assert ended.codes == [2, 2] and "No other checkpoint of the run is whole" in ended.text, ended.text
    assert finished.metrics() == before


def test_without_verification_a_flipped_bit_passes_and_the_log_says_so(finished):
    flip_a_bit(finished)
    ended = finished.with_keys({"checkpoint.verify": False, "run.steps": 7}).must_run(RANKS)
    assert "going on after step 6" in ended.text and "hashes not verified" in ended.text


def test_loading_tells_its_rate(finished):
    ended = finished.with_keys({"run.steps": 7}).must_run(RANKS)
    assert "GB/s, hashes verified" in ended.text


# ---- what a checkpoint knows of its run


def test_the_manifest_is_complete(undisturbed):
    job = undisturbed[0]
    state = json.loads((job.output / "checkpoints/step-00000006/manifest.json").read_text())["content"]["state"]
    assert (state["step"], state["samples"], state["updates"], state["skipped_in_a_row"], state["seed"]) == (6, 24, 6, 0, 1234)
    assert state["job"]["optimizer.lr"] == "0.001" and state["job"]["data.global_batch_size"] == "4"
    assert json.loads(state["model_config"])["hidden_size"] == 32
    assert state["layout"]["world"] == 2 and state["layout"]["expert"] == 2
    assert set(state["versions"]) == {"conclave", "torch"} and set(state["values"]) == {"steps_without_tokens"}
    assert len(state["values"]["steps_without_tokens"]) == 2 * 8  # of each layer's experts
    assert len(state["data_fingerprint"]) == 16


def test_pruning_keeps_the_newest_and_every_so_many(tmp_path):
    job = SmallJob(tmp_path, {**KEYS, "run.steps": 12, "checkpoint.every": 1, "checkpoint.keep": 2, "checkpoint.keep_every": 5})
    job.with_keys({"parallel.expert_parallel_degree": 1}).must_run()
    assert job.checkpoints == names([5, 10, 11, 12])

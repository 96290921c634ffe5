"""A rank that gets SIGKILL in each part of a run, from the rendezvous to the last word: the other names it and what it waited in, and nothing saved is lost.

Oracle: docs/errors.md for the exit codes; the same job that nothing disturbed, bit for bit. The faults come from outside (faults.py).
"""

import re
import signal

import pytest
from small_job import SmallJob
from undisturbed import KEYS, RANKS, assert_like_undisturbed

# Where the victim dies, by the function that it enters then; what the other says of it; and from where the same command goes on.
PARTS = {
    "rendezvous": ("conclave::connect_store", "did not start within|could not reach", None),
    "meeting": ("conclave::Watchdog::Shared::start", "did not start within|could not reach|is lost", None),
    "agreement": ("conclave::World::agree", "is lost", None),
    "opening-the-data": ("conclave::open_training", "is lost", None),
    "making-room": ("conclave::ParallelModel::allocate_parameters", "is lost", None),
    "initial-values": ("conclave::start_parameters", "is lost", None),
    "first-step": ("conclave::TrainStep::run", "is lost", None),
    "dispatch": ("conclave::AllToAllDispatcher::begin_dispatch", "is lost.*this rank \\(.\\) was (in|about to call) \\w+ #\\d+ of the expert axis", None),
    "combine": ("conclave::AllToAllDispatcher::begin_combine", "is lost.*this rank \\(.\\) was (in|about to call) \\w+ #\\d+ of the expert axis", None),
    "dispatch-backward": ("conclave::AllToAllDispatcher::begin_dispatch_backward", "is lost.*this rank \\(.\\) was (in|about to call)", None),
    "validation": ("conclave::validate", "is lost.*this rank \\(.\\) was (in|about to call)", None),
    "first-save": ("conclave::CheckpointWriter::begin", "is lost", None),
    "exit": ("conclave::Watchdog::finish", "is lost.*(had finished|was in)", 6),
}
FAST = [("rendezvous", 1), ("initial-values", 0), ("dispatch", 1), ("validation", 0), ("exit", 1)]


def check_part(part, victim, shim, undisturbed, folder, world=RANKS):
    function, said, goes_on_after = PARTS[part]
    keys = {**KEYS, "run.timeout_seconds": 15, "validation.every": 2, "data.validation": str(folder / "tokens")}
    job = SmallJob(folder, keys)
    ended = job.run(world, env_of_rank={victim: shim.death_at_first(function)})
    assert ended.codes == [-signal.SIGKILL if rank == victim else 3 for rank in range(world)], ended.text
    assert len(ended.error_lines) == 1, ended.text
    assert re.search(rf"rank {victim}\b", ended.error_lines[0]) and re.search(said, ended.error_lines[0]), ended.text
    text = job.must_run(world).text
    assert goes_on_after is None or f"all {goes_on_after} steps are done already" in text, text
    if world == RANKS:
        assert_like_undisturbed(job, undisturbed)


@pytest.mark.parametrize("part, victim", [pytest.param(part, victim, marks=[] if (part, victim) in FAST else pytest.mark.slow)
                                          for part in PARTS for victim in range(RANKS)])
def test_killed_in(part, victim, shim, undisturbed, tmp_path):
    check_part(part, victim, shim, undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_one_of_four_killed_in(part, shim, undisturbed, tmp_path):
    check_part(part, 2, shim, undisturbed, tmp_path, world=4)


# The last save, while the other rank lives on: what was saved before is what the same command goes on from.
LAST_SAVE = [("a-shard", 1, "reserve", "step-00000006/rank-00001", 1, 4), ("a-torn-shard", 0, "write", "step-00000006/rank-00000", 3, 4),
             ("the-manifest", 0, "rename", "step-00000006/manifest", 1, 4), ("its-name", 0, "rename", "checkpoints/step-00000006", 1, 4),
             ("the-newest-name", 0, "rename", "checkpoints/latest", 3, 4)]


@pytest.mark.parametrize("name, victim, operation, path, call, goes_on_after", [
    pytest.param(*case, id=case[0], marks=[] if case[0] == "a-shard" else pytest.mark.slow) for case in LAST_SAVE])
def test_killed_in_the_last_save(name, victim, operation, path, call, goes_on_after, shim, undisturbed, tmp_path):
    job = SmallJob(tmp_path, {**KEYS, "run.timeout_seconds": 15})
    ended = job.run(RANKS, env_of_rank={victim: shim.fault(operation, path, "tear" if "torn" in name else "kill", first=call)})
    assert ended.codes == [-signal.SIGKILL if rank == victim else 3 for rank in range(RANKS)], ended.text
    assert len(ended.error_lines) == 1 and f"rank {victim} is lost" in ended.error_lines[0], ended.text
    assert f"going on after step {goes_on_after}" in job.must_run(RANKS).text
    assert_like_undisturbed(job, undisturbed)

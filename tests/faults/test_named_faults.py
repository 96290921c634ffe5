"""Ranks that hang, leave or are cut off: who it was, since when, in which operation, and what the others waited in.

Oracle: docs/errors.md for the exit codes; the test knows whom it took away, and where.
"""

import re
import signal

import pytest
from small_job import SmallJob

JOB = {"run.steps": 1000000, "run.timeout_seconds": 6, "parallel.expert_parallel_degree": 2, "checkpoint.every": 4}
IN_OPERATION = r"\w+ #\d+ of the \w+ axis"


def the_error(ended):
    assert len(ended.error_lines) == 1, ended.text
    return ended.error_lines[0]


def test_a_rank_that_hangs_is_named(shim, tmp_path):
    """Its thread never returns from writing a record: its heart beats on."""
    ended = SmallJob(tmp_path, JOB).run(2, env_of_rank={0: shim.fault("write", "metrics.jsonl", "hang", first=5)})
    assert ended.codes == [3, 3], ended.text
    assert re.search(rf"rank 0 hangs: it lives, but for \d+ s it has not come to a collective that others wait in; it was last in no collective, after "
                     rf"{IN_OPERATION}; this rank \(1\) was in {IN_OPERATION}", the_error(ended)), ended.text
    assert "This rank (0) did not leave by itself within 10 s and is ended." in ended.errors[0], ended.text


def test_a_rank_that_leaves_with_code_0_is_named(shim, tmp_path):
    ended = SmallJob(tmp_path, JOB).run(2, env_of_rank={1: shim.fault("flush", "step-00000004/rank-00001", "leave")})
    assert ended.codes == [3, 0], ended.text
    assert re.search(r"rank 1 is lost: .*its process \(\d+\) has ended; .*this rank \(0\) was (in|about to call)", the_error(ended)), ended.text


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_stopped_rank_is_named(victim, tmp_path):
    job = SmallJob(tmp_path, JOB)
    ranks = job.start(2)
    ranks.wait_until(job.has_steps(3), "step 3")
    ranks.processes[victim].send_signal(signal.SIGSTOP)
    ranks.processes[1 - victim].wait(120)
    said = ranks.output(1 - victim)[1]
    ranks.kill()
    ended = ranks.wait()
    assert ended.codes == [-signal.SIGKILL if rank == victim else 3 for rank in range(2)], ended.text
    assert f"rank {victim} is lost: " in said, said
    if victim == 0:  # with it the store, and with that its last words
        assert "the store on this host served by rank 0 has not answered for" in said, said
    else:
        assert f"its process ({ranks.processes[victim].pid}) is stopped, as by SIGSTOP: SIGCONT lets it go on" in said, said
        assert re.search(rf"(last in|after|reached it is) {IN_OPERATION}", said), said
    assert re.search(rf"this rank \({1 - victim}\) (was in|was about to call) {IN_OPERATION}", said), said

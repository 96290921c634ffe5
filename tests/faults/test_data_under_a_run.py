"""Data files that are replaced under a run that reads them. Oracle: the same job on files that nobody touched, bit for bit."""

import os

from small_job import SmallJob, random_documents, write_tokens


def numbers(job, count):
    return [(record["step"], record["loss"]) for record in job.metrics()[:count]]


def test_a_set_that_is_built_anew_changes_nothing_under_a_run(tmp_path, monkeypatch):
    """The builder renames: who has the old files open goes on reading them. The next start refuses the other data."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # on a busy machine two threads wait longer for each other than they compute
    whole = SmallJob(tmp_path, {"run.steps": 400, "checkpoint.every": 400, "run.output_dir": str(tmp_path / "whole")})
    whole.must_run()
    job = whole.with_keys({"run.output_dir": str(tmp_path / "out")})
    running = job.start()
    running.wait_until(job.has_steps(2), "step 2")
    write_tokens(tmp_path / "others", random_documents(seed=11, count=20))
    for suffix in (".bin", ".idx"):
        os.rename(tmp_path / f"others{suffix}", tmp_path / f"tokens{suffix}")
    assert running.wait().codes == [0]
    assert numbers(job, 400) == numbers(whole, 400)
    ended = job.with_keys({"run.steps": 500}).run()
    assert ended.codes == [2] and "data.train is" in ended.text and "fingerprint" in ended.text, ended.text

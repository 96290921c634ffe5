"""`conclave train --profile`: the Chrome traces of a real run, and what is refused.

Oracles: the schedule of a step as docs/reading_path.md describes it, and that a profiled run computes what another one does.
"""

import json
import re

import pytest
from small_job import SmallJob

UNITS = ["embedding", "layers.0", "layers.1", "head"]


def job_of(folder, **keys):
    return SmallJob(folder, {"run.steps": 4, "parallel.expert_parallel_degree": 2, "checkpoint.every": 0, **keys})


def trace_of(job, steps, rank):
    return json.loads((job.output / "profile" / f"steps-{steps}.rank-{rank}.json").read_text())


def ranges_of(trace):
    """Name -> [(start, end)] of the named ranges, in microseconds, without those that c10d gives its sends and receives."""
    found = {}
    for event in trace["traceEvents"]:
        if event.get("cat") == "user_annotation" and event["ph"] == "X" and not event["name"].startswith("gloo:"):
            found.setdefault(event["name"], []).append((event["ts"], event["ts"] + event["dur"]))
    return found


def is_inside(inner, outers):
    return any(outer[0] <= inner[0] and inner[1] <= outer[1] for outer in outers)


def test_two_ranks_write_a_trace_each_of_the_steps_asked_for(tmp_path):
    job = job_of(tmp_path)
    job.must_run(2, arguments=["--profile", "2:3"])
    for rank in range(2):
        trace = trace_of(job, "2-3", rank)
        ranges = ranges_of(trace)
        steps = ranges["step"]
        assert len(steps) == 2
        for unit in UNITS:
            # Forward and backward of two steps; the head does both in one.
            assert len(ranges[f"unit {unit}"]) == (2 if unit == "head" else 4), unit
            assert len(ranges[f"gather {unit}"]) >= 2 and len(ranges[f"reduce {unit}"]) >= 2, unit
        for layer in ("layers.0", "layers.1"):
            assert len(ranges[f"experts {layer}"]) == 4
            for name in ("experts", "dispatch"):
                assert all(is_inside(part, ranges[f"unit {layer}"]) for part in ranges[f"{name} {layer}"]), name
        assert len(ranges["optimizer"]) == 2
        for parts in ranges.values():
            assert all(is_inside(part, steps) for part in parts)
        operations = [event for event in trace["traceEvents"] if event.get("cat") == "cpu_op"]
        assert any(is_inside((event["ts"], event["ts"] + event["dur"]), ranges["experts layers.0"]) and event["name"] in ("conclave::product", "aten::mm")
                   for event in operations)
    assert sorted(path.name for path in (job.output / "profile").iterdir()) == ["steps-2-3.rank-0.json", "steps-2-3.rank-1.json"]

    plain = job_of(tmp_path, **{"run.output_dir": str(tmp_path / "plain")})
    plain.must_run(2)
    assert [step["loss"] for step in plain.metrics()] == [step["loss"] for step in job.metrics()]


@pytest.mark.parametrize("given, words", [
    ("3:2", "--profile is 3:2, but the first step comes first. Did you mean 2:3?"),
    ("2:9", "--profile is 2:9, but the run has 4 steps (run.steps). Use steps from 1 to 4."),
    ("0:2", "--profile is 0:2, but steps count from 1. Use 1:2."),
    ("2", "--profile is 2. Did you mean 2:2?"),
    ("two:3", "--profile is two:3, but it is two steps, FIRST:LAST, for example 10:12."),
    ("2:3x", "--profile is 2:3x, but it is two steps, FIRST:LAST, for example 10:12."),
])
def test_steps_that_do_not_fit_are_refused_before_any_work(tmp_path, given, words):
    job = job_of(tmp_path, **{"parallel.expert_parallel_degree": 1})
    ended = job.run(arguments=["--profile", given])
    assert ended.codes == [2]
    assert re.sub(r"\s+", " ", ended.errors[0]).strip().endswith(words)
    assert not job.output.exists()


def test_steps_that_are_done_already_are_said_to_be(tmp_path):
    job = job_of(tmp_path, **{"parallel.expert_parallel_degree": 1, "checkpoint.every": 2})
    job.with_keys({"run.steps": 2}).must_run()
    assert "--profile 1:2: these steps are done already" in job.must_run(arguments=["--profile", "1:2"]).text
    assert not (job.output / "profile").exists()

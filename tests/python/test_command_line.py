"""What a user types: a slip is refused with the name that was meant, help can be read on a terminal, a job may come from a pipe.

Oracle: docs/errors.md for the exit code; the facts that a user needs to repair the slip, as given by the test that made it.
"""

import os
import re
import subprocess

import pytest
from ranks import PATIENCE_SECONDS
from small_job import PROGRAM, SmallJob


def conclave(*arguments, **options):
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_SECONDS, **options)


def assert_refused(ended, *facts):
    assert ended.returncode == 2, ended
    assert ended.stderr.count("error:") == 1 and ended.stdout == "", ended
    for fact in facts:
        assert str(fact) in ended.stderr, f"{fact!r} is not in: {ended.stderr}"
    assert "invariant" not in ended.stderr and "terminate" not in ended.stderr


# ---- slips


@pytest.mark.parametrize("arguments, facts", [
    pytest.param([], ["conclave needs a command", "train, validate"], id="nothing"),
    pytest.param(["trian", "job.yaml"], ["unknown command conclave trian", "Did you mean conclave train?"], id="command"),
    pytest.param(["valdate", "job.yaml", "--world", "2"], ["Did you mean conclave validate?"], id="command-with-options"),
    pytest.param(["serve", "--help"], ["unknown command conclave serve", "The commands are init, train, validate"], id="command-with-help"),
    pytest.param(["ckpt"], ["conclave ckpt needs a command", "list, show"], id="no-inner-command"),
    pytest.param(["ckpt", "exprot", "run", "folder"], ["unknown command conclave ckpt exprot", "Did you mean conclave ckpt export?"], id="inner-command"),
    pytest.param(["bench", "stpe", "--help"], ["Did you mean conclave bench step?"], id="inner-command-with-help"),
    pytest.param(["train"], ["job is required", "conclave train --help"], id="no-job"),
    pytest.param(["train", "/no/such/job.yaml"], ["/no/such/job.yaml", "No such file"], id="missing-job"),
    pytest.param(["train", "job.yaml", "--rank", "2"], ["unknown option --rank of conclave train", "Did you mean --ranks?"], id="option"),
    pytest.param(["plan", "job.yaml", "--wrold=8"], ["unknown option --wrold of conclave plan", "Did you mean --world?"], id="option-with-value"),
    pytest.param(["ckpt", "export", "run", "folder", "--overwite"], ["of conclave ckpt export", "Did you mean --overwrite?"], id="option-of-inner-command"),
    pytest.param(["eval", "job.yaml", "--zzz"], ["unknown option --zzz", "conclave eval --help lists the options"], id="option-near-none"),
    pytest.param(["--verison"], ["unknown option --verison of conclave", "Did you mean --version?"], id="option-of-the-program"),
    pytest.param(["train", "job.yaml", "--ranks", "0"], ["--ranks", "0"], id="no-ranks"),
    pytest.param(["train", "job.yaml", "--ranks", "two"], ["--ranks", "two"], id="ranks-not-a-number"),
    pytest.param(["train", "job.yaml", "--set"], ["--set"], id="set-nothing"),
    pytest.param(["train", "job.yaml", "run.steps=5"], ["run.steps=5"], id="set-without-its-option"),
    pytest.param(["ckpt", "prune", "run", "--keep", "0"], ["--keep: 0 is not a number above 0."], id="not-above-0"),
    pytest.param(["ckpt", "export", "run", "to", "--max-shard-size", "0"], ["--max-shard-size: 0 is not a number above 0."], id="size-not-above-0"),
    pytest.param(["plan", "job.yaml", "--top", "-1"], ["--top: -1 is not a number of 0 or more."], id="negative"),
    pytest.param(["data"], ["conclave data needs a command", "inspect"], id="data-nothing"),
])
def test_a_slip_in_the_command_line(arguments, facts, tmp_path):
    assert_refused(conclave(*arguments, cwd=tmp_path), *facts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("override, facts", [
    pytest.param("lr=1e-3", ["--set lr=1e-3 is not of the form", "Did you mean --set optimizer.lr=1e-3?"], id="no-section"),
    pytest.param("every=5", ["--set checkpoint.every=5 or --set validation.every=5"], id="of-two-sections"),
    pytest.param("stesp=5", ["Did you mean --set run.steps=5?"], id="no-section-and-a-slip"),
    pytest.param("steps", ["Did you mean --set run.steps=...?"], id="no-value"),
    pytest.param("zzzzzz=5", ["Write it like --set run.steps=100."], id="near-none"),
    pytest.param('run.name="a" # b', ["run.name", "something follows the quotes"], id="after-quotes"),
])
def test_a_slip_in_an_override(override, facts, tmp_path):
    assert_refused(conclave("validate", SmallJob(tmp_path).write(), "--set", override), *facts)


@pytest.mark.parametrize("override", ["run.steps={}", "moe.overload={}", "run.stop_after={}"])
def test_a_long_value_does_not_hide_its_mistake(override, tmp_path):
    for letter in ("x", "\u00fc"):
        ended = conclave("validate", SmallJob(tmp_path).write(), "--set", override.format(letter * 50_000))
        assert ended.returncode == 2 and ended.stderr.count("error:") == 1 and len(ended.stderr) < 1000, ended.stderr[:2000]


def resolved(*arguments, **options):
    """The resolved job that `validate` prints, as {"section.key": text}."""
    ended = conclave("validate", *arguments, **options)
    assert ended.returncode == 0, ended
    section, keys = "", {}
    for line in ended.stdout.splitlines():
        if found := re.match(r"(\w+):  #", line):
            section = found[1]
        elif found := re.match(r"  (\w+): (.*?) +# ", line):
            keys[f"{section}.{found[1]}"] = found[2]
    return keys


@pytest.mark.parametrize("override, value", [
    pytest.param("run.output_dir=/a #1", '"/a #1"', id="number-sign"),
    pytest.param("run.name=epoch #2 of 3", '"epoch #2 of 3"', id="in-the-middle"),
    pytest.param("run.name=#1", '"#1"', id="alone"),
    pytest.param("run.name=&a b", '"&a b"', id="yaml-anchor"),
    pytest.param("run.name='it''s #1'", '"it\'s #1"', id="quoted"),
    pytest.param("run.output_dir=a b", '"a b"', id="blank"),
])
def test_the_value_of_an_override_is_all_that_stands_there(override, value, tmp_path):
    assert resolved(SmallJob(tmp_path).write(), "--set", override)[override.partition("=")[0]] == value


@pytest.mark.parametrize("text, line", [("run:\n\tsteps: 5\n", 2), ("run:\n  steps: 5\ndata:\n  train: a\n \tvalidation: b\n", 5), ("\trun: {}\n", 1)])
def test_a_tab_in_the_job_file(text, line, tmp_path):
    (tmp_path / "job.yaml").write_text(text)
    assert_refused(conclave("validate", tmp_path / "job.yaml"), "begins with a tab", "Indent with spaces", f"line {line})")


@pytest.mark.parametrize("keys, tried", [
    pytest.param({"model.config": "model"}, "model ({folder}/model)", id="model"),
    pytest.param({"data.train": "data/tokens"}, "data/tokens.idx ({folder}/data/tokens.idx)", id="data"),
    pytest.param({"checkpoint.resume": "runs/a"}, "runs/a ({folder}/runs/a)", id="checkpoint"),
])
def test_a_relative_path_that_is_not_there_goes_with_the_place_that_was_tried(keys, tried, tmp_path):
    (tmp_path / "work").mkdir()
    job = SmallJob(tmp_path, keys)
    assert_refused(conclave("validate", job.write(), cwd=tmp_path / "work"), tried.format(folder=tmp_path / "work"))


def test_a_job_file_that_is_not_there_goes_with_the_place_that_was_tried(tmp_path):
    assert_refused(conclave("train", "jobs/job.yaml", cwd=tmp_path), f"jobs/job.yaml ({tmp_path}/jobs/job.yaml)")


def test_validate_ends_with_ok(tmp_path):
    job = SmallJob(tmp_path).write()
    assert conclave("validate", job).stdout.splitlines()[-1] == "OK: the job is right for 1 rank"
    assert conclave("validate", job, "--world", 4).stdout.splitlines()[-1] == "OK: the job is right for 4 ranks"
    assert conclave("validate", job, "--quiet").stdout == ""


@pytest.mark.parametrize("keys, ranks", [({"parallel.expert_parallel_degree": 2}, 2), ({"parallel.hybrid_shard_degree": 4}, 4),
                                         ({"parallel.expert_parallel_degree": 2, "parallel.hybrid_shard_degree": 3}, 6)])
def test_a_job_for_more_ranks_says_how_to_give_their_number(keys, ranks, tmp_path):
    ended = conclave("validate", SmallJob(tmp_path, keys).write())
    assert ended.returncode == 2 and f"--ranks {ranks} of train" in ended.stderr and f"--world {ranks} of validate" in ended.stderr, ended


# ---- help


def commands():
    """Every command of the program, as its own help lists them."""
    found, ahead = [], [[]]
    while ahead:
        command = ahead.pop()
        found.append(command)
        _, _, listed = conclave(*command, "--help").stdout.partition("Subcommands:\n")
        ahead += [[*command, name] for name in re.findall(r"^  (\w[\w-]*) ", listed.split("\n\n")[0], re.MULTILINE)]
    return found


def test_help_fits_a_terminal():
    all_commands = commands()
    assert ["ckpt", "export"] in all_commands and ["train"] in all_commands
    for command in all_commands:
        ended = conclave(*command, "--help", env={**os.environ, "COLUMNS": "250"})
        assert ended.returncode == 0, ended
        for line in ended.stdout.splitlines():
            assert len(line) <= 100 or " " not in line.strip(), f"{command}: {line}"
        assert not re.search(r"\b(INT|UINT|FLOAT)\b| in \[", ended.stdout), ended.stdout
    assert "--ranks NUMBER (1 to 1024)" in conclave("train", "--help").stdout


# ---- a job from a pipe


def piped(job, *arguments, name="-", **options):
    return conclave(*arguments[:1], name, *arguments[1:], input=job.write().read_text(), **options)


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_a_job_from_a_pipe(name, tmp_path):
    job = SmallJob(tmp_path)
    ended = piped(job, "train", name=name)
    assert ended.returncode == 0 and len(job.metrics()) == 3, ended


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_a_job_from_a_pipe_reaches_all_ranks(name, tmp_path):
    job = SmallJob(tmp_path, {"parallel.expert_parallel_degree": 2})
    ended = piped(job, "train", "--ranks", 2, name=name)
    assert ended.returncode == 0 and job.metrics()[0]["ranks"] == 2, ended


def test_a_job_that_a_shell_substitutes_reaches_all_ranks(tmp_path):
    job = SmallJob(tmp_path, {"parallel.expert_parallel_degree": 2, "run.steps": 5})
    command = f"{PROGRAM} train <(sed 's/\"steps\": 5/\"steps\": 2/' {job.write()}) --ranks 2 --set data.sequence_length=8"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE_SECONDS, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0 and len(job.metrics()) == 2, ended


def test_a_mistake_in_a_job_from_a_pipe_names_its_line(tmp_path):
    assert_refused(piped(SmallJob(tmp_path, {"run.stepz": 4}), "validate"), "unknown key run.stepz", "(standard input, line ")


@pytest.mark.parametrize("name, reason", [
    ("/dev/zero", "it is a device"), ("/dev/null", "it is a device"), ("/dev/urandom", "it is a device"), (".", "it is a folder"), ("a" * 300, "too long"),
    ("loop", "symbolic links")])
def test_a_job_that_is_no_file(name, reason, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert_refused(conclave("validate", name, cwd=tmp_path), name, reason)


def test_a_fifo_that_nobody_writes_to(tmp_path):
    os.mkfifo(tmp_path / "job.yaml")
    assert_refused(conclave("train", tmp_path / "job.yaml"), "job.yaml", "nobody wrote to it for 15 s")


def test_an_empty_pipe(tmp_path):
    assert_refused(conclave("train", "-", input=""), "on standard input", "an empty pipe")


def test_a_job_of_fifty_megabytes_is_refused_at_once(tmp_path):
    job = SmallJob(tmp_path, {"run.name": "x" * 50_000_000})
    file = job.write()
    assert_refused(conclave("validate", file), "longer than 1048576 bytes")
    assert_refused(conclave("validate", "-", stdin=open(file)), "longer than 1048576 bytes")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_data_that_is_no_file(suffix, kind, tmp_path):
    job = SmallJob(tmp_path)
    file = tmp_path / f"tokens{suffix}"
    file.unlink()
    {"fifo": lambda: os.mkfifo(file), "device": lambda: file.symlink_to("/dev/zero"), "folder": file.mkdir}[kind]()
    assert_refused(conclave("validate", job.write()), f"tokens{suffix}", "directory" if kind == "folder" else "not a regular file")


# ---- values without bounds


@pytest.mark.parametrize("override", [
    "moe.dispatch_chunks=2147483648", "moe.dispatch_chunks=65", "run.steps=999999999999999999", "run.timeout_seconds=2147483647",
    "data.sequence_length=2147483647", "parallel.expert_parallel_degree=2147483647", "parallel.hybrid_shard_degree=1048577",
    "parallel.prefetch_units=2147483647", "memory.activation_loading_horizon=100000", "moe.sinkhorn_iterations=2147483647", "checkpoint.every=10000000000",
    "checkpoint.every_minutes=1e9", "validation.samples=10000000000", "metrics.log_every=10000000000"])
def test_a_number_beyond_all_meaning(override, tmp_path):
    assert_refused(conclave("plan", SmallJob(tmp_path).write(), "--set", override), override.partition("=")[0], "at most")


def test_a_search_in_the_largest_world_takes_seconds(tmp_path):
    ended = conclave("plan", SmallJob(tmp_path).write(), "--world", 2**20, "--search")
    assert ended.returncode == 0 and "parallel.hybrid_shard_degree" in ended.stdout, ended


# ---- a run that saved nothing


@pytest.mark.parametrize("command", [["export", "{run}", "model"], ["show", "{run}"], ["to-dcp", "{run}", "folder"]])
def test_tools_say_that_a_run_saved_nothing(command, tmp_path):
    job = SmallJob(tmp_path)
    job.must_run()
    words = [word.format(run=job.output) for word in command]
    assert_refused(conclave("ckpt", *words, cwd=tmp_path), "is a run that has saved no checkpoint", "checkpoint.every: 0")

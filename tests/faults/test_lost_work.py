"""What a run keeps when nobody told it to, when its terminal or its reader goes away, and when its time is up.

Oracle: docs/errors.md for exit codes; the same job without the disturbance, bit for bit.
"""

import fcntl
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import termios
import time

import pytest
from ranks import PATIENCE_SECONDS, free_port, without_launcher
from small_job import PROGRAM, SmallJob
from test_stop_and_resume import ENDLESS, numbers, run_whole, stopped_step, weights

RANKS = [pytest.param([], id="1 rank"), pytest.param(["--ranks", "2"], id="2 ranks")]
# Of a step of many micro-steps, which lasts a second or more.
LONG_STEP = {"data.sequence_length": 64, "data.micro_batch_size": 16, "data.global_batch_size": 16 * 80}


@pytest.fixture(autouse=True)
def one_thread_a_rank(monkeypatch):
    """On a busy machine two threads wait longer for each other than they compute."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def endless(folder, **keys):
    return SmallJob(folder, {**ENDLESS, "parallel.expert_parallel_degree": 1, **keys})


def start(job, arguments=(), **options):
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": without_launcher(), **options}
    return subprocess.Popen([PROGRAM, "train", str(job.write()), *arguments], **options)


def wait_for(is_so, what):
    until = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < until, f"{what} was not seen"
        time.sleep(0.02)


def is_ended(process):
    return lambda: process.poll() is not None


def said_at_the_end(process):
    return process.communicate(timeout=PATIENCE_SECONDS)[0].decode()


# ---- what is kept


def test_a_job_with_the_three_required_keys_saves_its_last_step(tmp_path):
    job = SmallJob(tmp_path)
    job.keys = {key: job.keys[key] for key in ("run.output_dir", "model.config", "data.train")} | {
        "run.steps": 3, "data.sequence_length": 16, "run.device": "cpu"}  # for the time it takes
    ended = job.must_run()
    assert job.checkpoints == ["step-00000003"]
    assert f"checkpoints are saved every 30 minutes, and after the last step, in {job.output}/checkpoints; the newest 2 are kept" in ended.text
    assert "all 3 steps are done already" in job.must_run().text


@pytest.mark.parametrize("keys, said", [
    pytest.param({"checkpoint.every": 0, "checkpoint.every_minutes": 0}, "nothing of this run will be saved", id="nothing"),
    pytest.param({"checkpoint.every": 100, "checkpoint.every_minutes": 0, "checkpoint.keep": 1},
                 "saved every 100 steps, and after the last step, in {folder}/out/checkpoints; the newest is kept", id="steps"),
    pytest.param({"checkpoint.every": 100, "checkpoint.every_minutes": 7.5, "checkpoint.keep_every": 500},
                 "saved every 100 steps, every 7.5 minutes, and after the last step, in {folder}/out/checkpoints; the newest 2 are kept, "
                 "those of every 500 steps for good", id="both")])
def test_the_start_says_what_will_be_kept(keys, said, tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 1, **keys})
    assert said.format(folder=tmp_path) in job.must_run().text
    assert job.checkpoints == ([] if "nothing" in said else ["step-00000001"])


def test_saves_by_time_are_those_of_all_ranks_and_change_no_number(tmp_path):
    keys = {"run.steps": 60, "checkpoint.every": 0, "checkpoint.every_minutes": 0.2 / 60, "checkpoint.keep": 1000, "parallel.expert_parallel_degree": 2}
    job = SmallJob(tmp_path, keys)
    began = time.monotonic()
    job.must_run(2)
    steps = [int(name.removeprefix("step-")) for name in job.checkpoints]
    assert 3 <= len(steps) <= 1 + (time.monotonic() - began) / 0.2 and steps[-1] == 60, steps
    records = job.metrics()
    whole = run_whole(tmp_path / "whole", 60, {"checkpoint.every": 0})
    assert numbers(records) == numbers(whole.metrics())


def test_a_checkpoint_is_saved_when_it_is_asked_for(tmp_path):
    job = SmallJob(tmp_path, {**ENDLESS, "checkpoint.keep": 9})
    ranks = job.start(2)
    for number, receivers in enumerate([[0], [1], [0, 1]], 1):
        ranks.wait_until(job.has_steps(len(job.metrics()) + 3 if number > 1 else 3), "more steps")
        ranks.signal(signal.SIGUSR2, receivers)
        ranks.wait_until(lambda: len(job.checkpoints) >= number, f"checkpoint {number}")
    assert len(job.checkpoints) == 3
    ranks.signal(signal.SIGTERM)
    assert ranks.wait().codes == [4, 4] and len(job.checkpoints) == 4


def test_the_launcher_passes_on_that_a_checkpoint_is_asked_for(tmp_path):
    job = endless(tmp_path)
    process = start(job, ["--ranks", "2"])
    wait_for(job.has_steps(3), "step 3")
    process.send_signal(signal.SIGUSR2)
    wait_for(lambda: job.checkpoints, "a checkpoint")
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM ended the run" in said_at_the_end(process) and process.returncode == 4


@pytest.mark.parametrize("number, code", [(signal.SIGUSR2, None), (signal.SIGUSR1, 6)], ids=["to-save", "to-end"])
def test_signals_of_a_scheduler_while_a_run_starts(number, code, tmp_path):
    """One rank waits for another: it has not begun. Asked for a checkpoint it waits on; told to end it asks to be started again."""
    job = SmallJob(tmp_path, {"run.timeout_seconds": 30})
    process = start(job, env=without_launcher() | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())})
    wait_for(lambda: len(list(pathlib.Path(f"/proc/{process.pid}/task").iterdir())) > 1, "a thread of the rendezvous")
    time.sleep(0.5)
    process.send_signal(number)
    time.sleep(0.5)
    if code is None:
        assert process.poll() is None
        process.kill()
    assert process.wait(PATIENCE_SECONDS) == (-signal.SIGKILL if code is None else code), process.communicate()


def test_a_run_that_saves_nothing_says_so_when_it_is_asked(tmp_path):
    job = endless(tmp_path, **{"checkpoint.every": 0})
    rank = job.start()
    rank.wait_until(job.has_steps(3), "step 3")
    rank.signal(signal.SIGUSR2)
    rank.wait_until(lambda: "SIGUSR2 asked for it" in rank.output(0)[1], "an answer")
    rank.signal(signal.SIGTERM)
    assert rank.wait().codes == [4] and job.checkpoints == []


# ---- a lost terminal, a lost reader


@pytest.mark.parametrize("arguments", RANKS)
def test_sighup_ends_a_run_as_sigterm_does(arguments, tmp_path):
    job = endless(tmp_path)
    process = start(job, arguments)
    wait_for(job.has_steps(3), "step 3")
    for _ in range(3):  # a terminal that closes sends it more than once
        process.send_signal(signal.SIGHUP)
    text = said_at_the_end(process)
    assert process.returncode == 4 and f"SIGHUP ended the run after step {stopped_step(job)}" in text, text


@pytest.mark.parametrize("arguments", RANKS)
def test_with_nohup_a_run_goes_on(arguments, tmp_path):
    job = endless(tmp_path, **{"run.steps": 200, "checkpoint.every": 200})
    process = start(job, arguments, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(job.has_steps(3), "step 3")
    process.send_signal(signal.SIGHUP)
    text = said_at_the_end(process)
    assert process.returncode == 0 and len(job.metrics()) == 200, text


@pytest.mark.parametrize("lost", ["stdout", "stderr", "both"])
@pytest.mark.parametrize("arguments", RANKS)
def test_a_lost_reader_does_not_end_a_run(lost, arguments, tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 40, "checkpoint.every": 10, "checkpoint.keep": 9})
    outputs = {name: subprocess.PIPE if lost in (name, "both") else subprocess.DEVNULL for name in ("stdout", "stderr")}
    process = start(job, arguments, **outputs)
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.read(1)  # as `| head -c 1` does
            pipe.close()
    assert process.wait(PATIENCE_SECONDS) == 0
    assert len(job.metrics()) == 40 and len(job.checkpoints) == 4


def test_a_reader_that_was_never_there(tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 3})
    ended = subprocess.run(["bash", "-c", f"set -o pipefail; {PROGRAM} train {job.write()} 2>&1 | true"], timeout=PATIENCE_SECONDS)
    assert ended.returncode == 0 and len(job.metrics()) == 3


class Terminal:
    """A terminal with a run in its foreground, as a login shell would start it."""

    def __init__(self, job, arguments):
        self.controller, terminal = pty.openpty()

        def take_terminal():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = start(job, arguments, stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=take_terminal)
        os.close(terminal)
        self.text = ""

    def read_until(self, is_so, what):
        """Reads on, so that the run never waits for its terminal."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            assert time.monotonic() < until, f"{what} was not seen:\n{self.text}"
            if select.select([self.controller], [], [], 0.05)[0]:
                try:
                    self.text += os.read(self.controller, 65536).decode(errors="replace")
                except OSError:  # all that had it open are gone
                    time.sleep(0.02)

    def press(self, key):
        os.write(self.controller, key)

    def close(self):
        os.close(self.controller)


@pytest.mark.parametrize("arguments", RANKS)
def test_a_closed_terminal_ends_a_run_with_a_checkpoint(arguments, tmp_path):
    job = endless(tmp_path)
    terminal = Terminal(job, arguments)
    terminal.read_until(job.has_steps(3), "step 3")
    terminal.close()
    assert terminal.process.wait(PATIENCE_SECONDS) == 4
    assert stopped_step(job) == len(job.metrics())


@pytest.mark.parametrize("arguments", RANKS)
def test_ctrl_c_ends_a_run_with_a_checkpoint(arguments, tmp_path):
    job = endless(tmp_path)
    terminal = Terminal(job, arguments)
    terminal.read_until(job.has_steps(3), "step 3")
    terminal.press(b"\x03")
    terminal.read_until(is_ended(terminal.process), "the end")
    assert terminal.process.returncode == 5, terminal.text
    assert terminal.text.count("SIGINT: the run ends after the step in hand. Press Ctrl-C again to end it at once.") == 1, terminal.text
    assert f"SIGINT ended the run after step {stopped_step(job)}; the same command goes on from there" in terminal.text, terminal.text


@pytest.mark.parametrize("keys, said", [
    ({"checkpoint.every": 1, "checkpoint.async": False}, r"What came after step (\d+) is not saved; the same command goes on from there\."),
    ({"checkpoint.every": 100000}, r"Nothing of it is saved\.()")])
@pytest.mark.parametrize("arguments", RANKS)
def test_a_second_ctrl_c_ends_the_run_at_once_and_says_what_is_saved(arguments, keys, said, tmp_path):
    job = endless(tmp_path, **LONG_STEP, **keys)
    terminal = Terminal(job, arguments)
    terminal.read_until(job.has_steps(2), "step 2")
    time.sleep(0.3)  # the save of that step is done, the next step runs
    terminal.press(b"\x03")
    terminal.read_until(lambda: "SIGINT: the run ends after the step in hand" in terminal.text, "the answer to the first")
    terminal.press(b"\x03")
    terminal.read_until(is_ended(terminal.process), "the end")
    terminal.read_until(lambda: "came twice" in terminal.text, "the answer to the second")
    assert terminal.process.returncode == 128 + signal.SIGINT, terminal.text
    found = re.search(r"SIGINT came twice: the run ends at once\. " + said, terminal.text)
    assert found, terminal.text
    saved = [name for name in job.checkpoints if name.startswith("step-")]
    assert saved[-1:] == ([f"step-{int(found[1]):08}"] if found[1] else []), terminal.text


def test_signals_of_a_scheduler_end_a_run_once(tmp_path):
    # A scheduler warns by one signal, ends by another, and repeats itself: that is no impatience.
    job = endless(tmp_path, **LONG_STEP)
    rank = job.start()
    rank.wait_until(job.has_steps(1), "step 1")
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
        rank.signal(number)
        time.sleep(0.05)
    ended = rank.wait()
    assert ended.codes == [4] and f"SIGTERM ended the run after step {stopped_step(job)}" in ended.text, ended.text


# ---- a deadline


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_saves_and_ends_before_its_deadline_and_goes_on_bit_for_bit(ranks, tmp_path):
    keys = {"checkpoint.keep": 9, "run.stop_after": "12s", "parallel.expert_parallel_degree": ranks}
    job = SmallJob(tmp_path, {**ENDLESS, **keys})
    began = time.monotonic()
    ended = job.run(ranks)
    took = time.monotonic() - began
    assert ended.codes == [6] * ranks, ended.text
    # A step may take longer than any before it, on a machine with other work.
    assert took < 12 + 3 + max(record["step_seconds"] for record in job.metrics()), ended.text
    step = int(job.checkpoints[-1].removeprefix("step-"))
    assert "the run ends before 12s (run.stop_after)" in ended.text
    assert f"the deadline (run.stop_after) ended the run after step {step}; the same command goes on from there" in ended.text
    assert len(job.checkpoints) == 2  # the first one measured how long a save takes
    job = job.with_keys({"run.steps": step + 2, "run.stop_after": None})
    job.must_run(ranks)
    whole = run_whole(tmp_path / "whole", step + 2, {"parallel.expert_parallel_degree": ranks}, ranks)
    assert numbers(job.metrics()) == numbers(whole.metrics())
    assert weights(job) == weights(whole)


def test_a_run_whose_deadline_is_far_ends_as_any_other(tmp_path):
    job = SmallJob(tmp_path, {"run.stop_after": "1d12h"})
    assert "the run ends before 1d12h" in job.must_run().text and job.checkpoints == []


def test_a_deadline_that_has_passed_at_the_first_step_lets_it_end(tmp_path):
    job = SmallJob(tmp_path, {**ENDLESS, "parallel.expert_parallel_degree": 1, "run.stop_after": "1s"})
    assert job.run().codes == [6] and job.checkpoints == ["step-00000001"]


@pytest.mark.parametrize("text", ["90", "3:30", "1.5h", "30m1h", "0m", "soon", "-5m", "99999999999999999999h"])
def test_a_deadline_in_another_form(text, tmp_path):
    ended = SmallJob(tmp_path, {"run.stop_after": text}).run()
    assert ended.codes == [2] and f'run.stop_after is "{text}", but it must be a duration' in ended.text and "3h30m" in ended.text, ended.text


# ---- paths


PATHS = ["run.output_dir", "model.config", "model.init_from", "model.upcycle_from", "data.train", "data.validation", "memory.offload_folder",
         "checkpoint.resume"]


@pytest.mark.parametrize("key", PATHS)
def test_an_undefined_variable_in_a_path_is_refused_by_key_and_name(key, tmp_path):
    job = SmallJob(tmp_path, {key: "${NO_SUCH_VARIABLE}/a"})
    ended = job.run(env={"EMPTY": ""}, cwd=tmp_path)
    assert ended.codes == [2], ended.text
    assert f'{key} is "${{NO_SUCH_VARIABLE}}/a", but the environment variable NO_SUCH_VARIABLE is not set' in ended.text, ended.text
    ended = job.with_keys({key: "$EMPTY/a"}).run(env={"EMPTY": ""}, cwd=tmp_path)
    assert ended.codes == [2] and "the environment variable EMPTY is empty" in ended.text, ended.text
    assert not {"~", "${NO_SUCH_VARIABLE}", "$EMPTY"} & {path.name for path in tmp_path.iterdir()}


def test_every_path_of_a_job_is_expanded(tmp_path):
    first = SmallJob(tmp_path, {"checkpoint.every": 1, "run.steps": 1})
    first.must_run()
    job = first.with_keys({"run.output_dir": "~/second", "model.config": "${PLACE}/config.json", "data.train": "$PLACE/tokens",
                           "data.validation": "~/tokens", "checkpoint.resume": "${PLACE}/out/checkpoints/step-00000001", "run.steps": 2,
                           "memory.activation_checkpointing": "full", "memory.activation_offloading": True, "memory.activation_loading_horizon": 1,
                           "memory.offload_folder": "~/scr$$atch"})
    (tmp_path / "work").mkdir()
    ended = job.must_run(env={"HOME": str(tmp_path), "PLACE": str(tmp_path)}, cwd=tmp_path / "work")
    assert "going on after step 1" in ended.text and not list((tmp_path / "work").iterdir())
    assert (tmp_path / "scr$atch").is_dir()
    resolved = (tmp_path / "second/job.yaml").read_text()
    for key, value in {"output_dir": "second", "config": "config.json", "train": "tokens", "validation": "tokens", "offload_folder": "scr$$atch",
                       "resume": "out/checkpoints/step-00000001"}.items():
        assert f'  {key}: "{tmp_path}/{value}"' in resolved, resolved
    # What is resolved needs no variable, and means the same.
    ended = subprocess.run([PROGRAM, "validate", tmp_path / "second/job.yaml"], env={"HOME": "/nowhere"}, capture_output=True, text=True, cwd="/")
    assert ended.returncode == 0 and f'offload_folder: "{tmp_path}/scr$$atch"' in ended.stdout, ended

"""Who else is on the machine or the network: what they reach of a job, and what becomes of it.

Oracle: the kernel's own lists of sockets; a stranger that is played by another user (nobody) or by a plain client of the store.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import ROOT, free_port, process_of_rank
from small_job import PROGRAM, SmallJob

ENDLESS = {"run.steps": 1000000, "run.timeout_seconds": 30, "parallel.expert_parallel_degree": 2}
NO_PLACE = {"LOCAL_RANK": "", "LOCAL_WORLD_SIZE": ""}
LISTENS = {"tcp": "0A", "tcp6": "0A"}


def sockets_of(pids):
    """The inodes of the processes' sockets."""
    inodes = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(file)
            except OSError:
                continue
            if match := re.fullmatch(r"socket:\[(\d+)\]", target):
                inodes.add(match[1])
    return inodes


def listening(pids):
    """(tcp addresses as the kernel writes them, names of Unix sockets) on which the processes listen."""
    own, tcp, unix = sockets_of(pids), [], []
    for table, state in LISTENS.items():
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state and fields[9] in own:
                tcp.append(fields[1])
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if fields[6] in own and int(fields[3], 16) & 0x10000:  # __SO_ACCEPTCON
            unix.append(fields[7] if len(fields) > 7 else "")
    return tcp, unix


# Tells what came back from the address in its argument, to a process of another user.
STRANGER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
name = sys.argv[1]
with socket.socket(socket.AF_UNIX) as stranger:
    stranger.settimeout(10)
    try:
        stranger.connect(name.replace("@", chr(0), 1))
        stranger.sendall(bytes.fromhex(sys.argv[2]))
        print("answered" if stranger.recv(1) else "closed")
    except (ConnectionError, PermissionError, FileNotFoundError) as error:
        print("refused", error)
"""
SET_A_VERDICT = b"\x00" + b"\x07\0\0\0verdict" + b"\x06\0\0\0\nowned"  # as the host's store has it
REQUEST = len(SET_A_VERDICT).to_bytes(4, "little") + SET_A_VERDICT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_no_other_user_reaches_a_job_of_one_host(tmp_path):
    job = SmallJob(tmp_path, ENDLESS)
    with job.start(1, arguments=["--ranks", 2]) as launcher:
        launcher.wait_until(job.has_steps(3), "step 3")
        pids = [launcher.processes[0].pid, *(process_of_rank(str(job.folder), rank) for rank in range(2))]
        tcp, unix = listening(pids)
        assert tcp == [], "the job listens on a network"
        assert len(unix) == 1 and unix[0].startswith("@conclave/"), unix
        for words in (REQUEST, b"GET / HTTP/1.0\r\n\r\n", b"\x80\x04."):
            done = subprocess.run([sys.executable, "-c", STRANGER, unix[0], words.hex()], capture_output=True, text=True, timeout=60)
            assert done.stdout.strip().split()[0] in ("closed", "refused"), done.stdout + done.stderr
        steps = len(job.metrics())
        launcher.wait_until(job.has_steps(steps + 3), "three steps more")
        launcher.signal(signal.SIGTERM)
        assert launcher.wait().codes == [4]


def test_ranks_that_know_only_a_loopback_address_listen_there_alone(tmp_path):
    """PyTorch's four variables do not say that all ranks are on this host, but an address of its loopback does."""
    job = SmallJob(tmp_path, ENDLESS)
    with job.start(2, env={**NO_PLACE, "MASTER_ADDR": "127.0.0.1"}) as ranks:
        ranks.wait_until(job.has_steps(3), "step 3")
        tcp, _ = listening([process.pid for process in ranks.processes])
        assert tcp and all(address.startswith("0100007F:") for address in tcp), tcp


# ---- a stranger who reaches the store of a job of several hosts

STORE = """
import sys, time, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, wait_for_workers=False)
try:
    for _ in range(3000):  # a rank writes its report anew once a second
        store.set(f"conclave/0/2/{sys.argv[2]}", bytes.fromhex(sys.argv[3]))
        time.sleep(0.02)
except dist.DistNetworkError:
    pass  # the run has ended
"""
TITLE = "\x1b]0;owned\x07"


def secret_of(folder, name="secret", text="f3c1" * 8):
    file = folder / name
    file.write_text(text + "\n")
    file.chmod(0o600)
    return {"CONCLAVE_SECRET_FILE": str(file)}


def end_by_a_stranger(job, key, value, env):
    port = free_port()
    ranks = job.start(2, env={**NO_PLACE, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), **env})
    ranks.wait_until(job.has_steps(3), "step 3")
    subprocess.run([sys.executable, "-c", STORE, str(port), key, value.hex()], check=True, timeout=100)
    return ranks.wait()


@pytest.mark.parametrize("key, value", [("verdict", f"\nrank 1 is lost {TITLE}".encode()), ("rank/1", b"\x80\x04 a pickle " + TITLE.encode())])
@pytest.mark.parametrize("has_secret", [False, True], ids=["open", "secret"])
def test_a_strangers_words_end_a_run_but_reach_no_terminal(key, value, has_secret, tmp_path):
    job = SmallJob(tmp_path, ENDLESS)
    ended = end_by_a_stranger(job, key, value, secret_of(tmp_path) if has_secret else {})
    assert 3 in ended.codes and set(ended.codes) <= {3}, ended.text
    assert TITLE not in ended.text and "\x1b" not in ended.text
    assert "invariant broken" not in ended.text
    if has_secret or key != "verdict":
        assert "which no rank of this job writes" in ended.text and "CONCLAVE_SECRET_FILE" in ended.text, ended.text


def test_a_rank_with_another_secret_is_refused(tmp_path):
    job = SmallJob(tmp_path, {"run.timeout_seconds": 10})
    ended = job.run(2, env={**NO_PLACE, "MASTER_ADDR": "localhost"}, env_of_rank={0: secret_of(tmp_path), 1: secret_of(tmp_path, "other", "0123456789abcdef")})
    assert 0 not in ended.codes and "which no rank of this job writes" in ended.text, ended.text


def test_a_job_with_a_secret_trains_as_one_without(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    signed, plain = SmallJob(tmp_path / "a"), SmallJob(tmp_path / "b")
    signed.must_run(2, env={**NO_PLACE, "MASTER_ADDR": "localhost", **secret_of(tmp_path)})
    plain.must_run(2)
    assert [record["loss"] for record in signed.metrics()] == [record["loss"] for record in plain.metrics()]


@pytest.mark.parametrize("name, mode, words", [("short", 0o600, "a secret needs 16"), ("f3c1" * 8, 0o644, "which other users may read"), (None, 0, "No such file")])
def test_what_is_no_secret_is_refused_once(name, mode, words, tmp_path):
    file = tmp_path / "secret"
    if name:
        file.write_text(name)
        file.chmod(mode)
    ended = SmallJob(tmp_path).run(2, env={**NO_PLACE, "MASTER_ADDR": "localhost", "CONCLAVE_SECRET_FILE": str(file)})
    assert ended.codes == [2, 2] and words in ended.text and ended.error_lines, ended.text


# ---- files of the current folder

TRAPS = ("json", "logging", "torch", "numpy", "site", "runpy", "conclave")


def trapped(folder):
    """A folder whose Python files tell when they run."""
    folder.mkdir()
    for name in TRAPS:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'sprung')!r}, 'a').write({name!r})\n")
    return folder


@pytest.mark.parametrize("path", [pytest.param({}, id="none", marks=pytest.mark.slow), pytest.param({"PYTHONPATH": ":"}, id="empty", marks=pytest.mark.slow),
                                  pytest.param({"PYTHONPATH": "."}, id="dot")])
def test_no_python_file_of_the_current_folder_runs(path, tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 2, "checkpoint.every": 2})
    folder = trapped(tmp_path / "here")
    job.must_run(1, arguments=["--ranks", 2], cwd=folder, env=path)
    for words in (["report", job.output], ["ckpt", "to-dcp", job.output, tmp_path / "dcp"]):
        done = subprocess.run([PROGRAM, *map(str, words)], cwd=folder, env={**os.environ, **path}, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder / "sprung").exists(), (folder / "sprung").read_text()


@pytest.mark.parametrize("python, words", [("/no/such/python", "/no/such/python cannot be run"), (None, "cannot import what this command needs")])
def test_a_python_that_lacks_what_is_needed_is_named(python, words, tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 1})
    job.must_run()
    if python is None:
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
        python.chmod(0o755)
    done = subprocess.run([PROGRAM, "report", job.output], env={**os.environ, "CONCLAVE_PYTHON": str(python)}, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and words in done.stderr and "CONCLAVE_PYTHON" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr

"""How ranks are started and meet: what launchers tell them, hosts of several kinds, and launchers that tell too little.

Oracle: the launchers' own documents for their variables; a run on one host, started by `--ranks`, for the numbers.
"""

import contextlib
import os
import pty
import socket
import subprocess
import tempfile
import threading
import time

import numpy as np
import pytest
from network_hosts import hosts_of_a_network
from ranks import PATIENCE_SECONDS, free_port, without_launcher
from small_job import PROGRAM, SmallJob

LAYOUT_TOLERANCE = 2e-4
NO_PLACE = {"LOCAL_RANK": "", "LOCAL_WORLD_SIZE": ""}  # PyTorch's env:// knows of none
BATCH = {"data.global_batch_size": 8, "data.micro_batch_size": 2}


def losses(job):
    return [record["lm_loss"] for record in job.metrics()]


def close_to(job, other):
    np.testing.assert_allclose(losses(job), losses(other), rtol=LAYOUT_TOLERANCE, atol=0)


def in_folder(folder, keys=None):
    folder.mkdir()
    return SmallJob(folder, keys)


# ---- one machine


@pytest.mark.parametrize("left_over", [
    {"RANK": "0", "WORLD_SIZE": "1"},
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "4000"},
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "4294967290"},
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "ENVIRONMENT": "BATCH"},
    {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
], ids=["WORLD_SIZE 1", "srun --pty", "salloc", "sbatch", "mpirun -n 1"])
def test_ranks_are_started_where_a_launcher_started_one_process(left_over, tmp_path):
    ended = SmallJob(tmp_path).must_run(1, arguments=["--ranks", 2], env=left_over)
    assert "world size 2" in ended.text


def test_ranks_that_contradict_the_launcher_are_refused(tmp_path):
    ended = SmallJob(tmp_path).run(2, arguments=["--ranks", 3])
    assert ended.codes == [2, 2] and len(ended.error_lines) == 1 and "--ranks is 3, but the launcher started 2" in ended.text, ended.text


@pytest.mark.parametrize("variable", ["PMIX_RANK", "FLUX_TASK_RANK", "PALS_RANKID"])
def test_a_launcher_that_tells_no_number_of_ranks_is_refused(variable, tmp_path):
    ended = SmallJob(tmp_path).run(1, env={variable: "0"})
    assert ended.codes == [2] and f"{variable} is 0" in ended.text and "Set RANK, WORLD_SIZE" in ended.text, ended.text


def test_an_unknown_launcher_is_named(tmp_path):
    ended = SmallJob(tmp_path, {"run.steps": 1}).must_run(1, env={"ACME_RANK": "1"})
    assert "ACME_RANK=1" in ended.text and "a launcher that Conclave does not know" in ended.text


def test_several_worlds_of_one_in_a_folder_are_told_of_their_launcher(tmp_path):
    job = SmallJob(tmp_path, {"run.steps": 1000000})
    with job.start(1, env={"ACME_RANK": "0"}) as first:
        first.wait_until(job.has_steps(1), "step 1")
        ended = job.run(1, env={"ACME_RANK": "1"})
    assert ended.codes == [2] and "another run is using that folder" in ended.text and "ACME_RANK=1" in ended.text, ended.text


HYDRA = [{"PMI_RANK": str(rank), "PMI_SIZE": "2", "MPI_LOCALRANKID": str(rank), "MPI_LOCALNRANKS": "2"} for rank in range(2)]
OPEN_MPI = [{"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
             "PMIX_NAMESPACE": f"prterun-{os.getpid()}@1", "MASTER_PORT": ""} for rank in range(2)]
MVAPICH = [{"MV2_COMM_WORLD_RANK": str(rank), "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_RANK": str(rank), "MV2_COMM_WORLD_LOCAL_SIZE": "2"}
           for rank in range(2)]


@pytest.mark.parametrize("variables", [HYDRA, OPEN_MPI, MVAPICH], ids=["Hydra", "Open MPI", "MVAPICH"])
def test_ranks_of_an_mpi_meet(variables, tmp_path):
    no_torchrun = {name: "" for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")}
    ended = SmallJob(tmp_path).must_run(2, env_of_rank={rank: no_torchrun | own for rank, own in enumerate(variables)})
    assert "world size 2" in ended.text


@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_in_a_terminal_saves(ranks, tmp_path):
    """The terminal sends SIGINT to every process of its foreground group: a rank must get it once."""
    job = SmallJob(tmp_path, {"run.steps": 1000000, "checkpoint.every": 1000000})
    words = [PROGRAM, "train", str(job.write()), "--ranks", str(ranks)]
    child, terminal = pty.fork()
    if child == 0:
        os.execve(PROGRAM, words, without_launcher())
    said = []
    reader = threading.Thread(target=read_all, args=(terminal, said), daemon=True)
    reader.start()
    until = time.monotonic() + PATIENCE_SECONDS
    while not job.has_steps(3)() and time.monotonic() < until:
        time.sleep(0.05)
    os.write(terminal, b"\x03")
    _, status = os.waitpid(child, 0)
    reader.join(10)
    assert os.waitstatus_to_exitcode(status) == 5 and len(job.checkpoints) == 1, b"".join(said).decode(errors="replace")


def read_all(terminal, said):
    with contextlib.suppress(OSError):  # the other end is closed
        while text := os.read(terminal, 4096):
            said.append(text)


# ---- PyTorch's four variables


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", pytest.param("::1", marks=pytest.mark.slow), pytest.param("localhost", marks=pytest.mark.slow)])
def test_four_variables_are_enough_on_one_host(address, tmp_path):
    job = in_folder(tmp_path / "a")
    job.must_run(2, env={**NO_PLACE, "MASTER_ADDR": address})
    other = in_folder(tmp_path / "b")
    other.must_run(1, arguments=["--ranks", 2])
    assert losses(job) == losses(other)


@pytest.mark.parametrize("of_rank_0", ["10.219.0.1", "localhost"], ids=["address", "localhost"])
def test_four_variables_are_enough_for_pods(of_rank_0, tmp_path):
    """One rank a host, as Kubeflow's PyTorchJob starts them; its older versions tell the master that it is `localhost`."""
    job = in_folder(tmp_path / "a", {"parallel.expert_parallel_degree": 2, "run.timeout_seconds": 40})
    with hosts_of_a_network(2) as hosts:
        job.must_run(2, env={**NO_PLACE, "MASTER_ADDR": hosts[0].address}, env_of_rank={0: {"MASTER_ADDR": of_rank_0}},
                     launcher_of_rank={rank: host.command for rank, host in enumerate(hosts)})
    other = in_folder(tmp_path / "b", {"parallel.expert_parallel_degree": 2})
    other.must_run(1, arguments=["--ranks", 2])
    close_to(job, other)


# ---- hosts that differ


@pytest.mark.parametrize("host_of_rank", [pytest.param([0, 1, 1, 2], id="1, 2, 1"), pytest.param([0, 1, 2, 0], id="cyclic"),
                                          pytest.param([0, 0, 0, 1], id="3, 1", marks=pytest.mark.slow)])
def test_uneven_hosts_agree_on_what_a_group_must_share(host_of_rank, tmp_path):
    keys = {"parallel.expert_parallel_degree": 2, "run.timeout_seconds": 40}
    job = in_folder(tmp_path / "a", keys)
    places = {}
    for rank, host in enumerate(host_of_rank):
        places[rank] = {"LOCAL_RANK": str(host_of_rank[:rank].count(host)), "LOCAL_WORLD_SIZE": str(host_of_rank.count(host))}
    with hosts_of_a_network(3) as hosts:
        ended = job.must_run(4, env={"MASTER_ADDR": hosts[0].address}, env_of_rank=places,
                             launcher_of_rank={rank: hosts[host].command for rank, host in enumerate(host_of_rank)})
    assert "dispatched in 2 parts" in ended.text
    other = in_folder(tmp_path / "b", keys)
    other.must_run(1, arguments=["--ranks", 4])
    close_to(job, other)


@pytest.mark.parametrize("key, value", [("optimizer.lr", 2e-3), pytest.param("run.steps", 4, marks=pytest.mark.slow), ("moe.dispatch_chunks", 2)])
def test_ranks_that_were_given_different_jobs_are_refused(key, value, tmp_path):
    job = SmallJob(tmp_path)
    file, other = job.write(), job.with_keys({key: value}).write("other.yaml")
    # A shell of each rank's own picks its file.
    script = f'if [ "$RANK" = 1 ]; then set -- "$1" "$2" {other}; fi; exec "$@"'
    ended = job.run(2, launcher=["/bin/sh", "-c", script, "sh"])
    assert ended.codes == [2, 2] and len(ended.error_lines) == 1, ended.text
    assert f"{key} is " in ended.error_lines[0] and "on rank 0 but" in ended.error_lines[0] and "on rank 1" in ended.error_lines[0], ended.text
    assert file.exists() and not job.checkpoints


# ---- ports


@contextlib.contextmanager
def silent_listener(address="127.0.0.1"):
    """A port on which somebody accepts and never says a word."""
    with socket.socket() as listener:
        port = free_port()
        listener.bind((address, port))
        listener.listen(16)
        yield port


def test_a_silent_listener_on_the_port_ends_all_ranks_in_time(tmp_path):
    job = SmallJob(tmp_path, {"run.timeout_seconds": 5})
    with silent_listener() as port:
        ended = job.start(2, env={**NO_PLACE, "MASTER_PORT": str(port)}).wait(60)
    assert ended.codes == [2, 3], ended.text
    assert f"port {port} (MASTER_PORT) of this host is in use" in ended.errors[0], ended.text


def test_a_name_that_no_host_has_is_said_to_be_none(tmp_path):
    """By each host, which may know other names."""
    ended = SmallJob(tmp_path, {"run.timeout_seconds": 5}).run(2, env={**NO_PLACE, "MASTER_ADDR": "rank-0.invalid"})
    assert ended.codes == [2, 2], ended.text
    assert all('MASTER_ADDR is "rank-0.invalid", which cannot be resolved' in line for line in ended.error_lines), ended.text


def test_who_lives_on_where_rank_0_does_not_serve_says_so(tmp_path):
    """Rank 0's host is not there: what listens is somebody else, whom rank 1 must name."""
    job = SmallJob(tmp_path, {"run.timeout_seconds": 5})
    with silent_listener() as port:
        place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ended = job.start(1, env=place).wait(60)
    assert ended.codes == [3] and f"127.0.0.1:{port}" in ended.text, ended.text
    assert "accepts connections but does not answer as a store does" in ended.text, ended.text


def test_on_one_host_nobody_needs_the_port(tmp_path):
    with silent_listener() as port:
        SmallJob(tmp_path).must_run(2, env={"MASTER_PORT": str(port)})


def test_two_jobs_at_the_same_port_of_a_host_are_refused(tmp_path):
    port = str(free_port())
    first = in_folder(tmp_path / "a", {"run.steps": 1000000})
    with first.start(2, env={"MASTER_PORT": port}) as ranks:
        ranks.wait_until(first.has_steps(1), "step 1")
        second = in_folder(tmp_path / "b", {"run.timeout_seconds": 10})
        ended = second.run(2, env={"MASTER_PORT": port})
        assert ended.codes == [2, 2] and f"port {port} (MASTER_PORT) of this host is in use" in ended.errors[0], ended.text
        steps = len(first.metrics())
        ranks.wait_until(first.has_steps(steps + 3), "three steps more")
        assert all(process.poll() is None for process in ranks.processes), "the first job goes on"


# ---- cores


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("words, cores, expected", [({"SLURM_CPUS_PER_TASK": "16"}, 1, 1), ({"SLURM_CPUS_PER_TASK": "1"}, 2, 1), ({}, 2, 2),
                                                    ({"OMP_NUM_THREADS": "1"}, 2, 1)])
def test_a_rank_has_as_many_threads_as_cores_it_may_use(words, cores, expected, tmp_path):
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "1", **words}
    job = SmallJob(tmp_path, {"run.steps": 1})
    bound = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
    ended = job.must_run(1, env={"OMP_NUM_THREADS": "", **slurm}, launcher=["taskset", "-c", bound])
    assert f"computes with {expected} threads" in ended.text, ended.text


# ---- another user than the builder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_starts_ranks():
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if subprocess.run([*as_nobody, PROGRAM, "--version"], capture_output=True).returncode != 0:
        pytest.skip("nobody cannot start this checkout's program")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        job = SmallJob(folder)
        job.must_run(1, arguments=["--ranks", 2], launcher=as_nobody)
        assert os.stat(job.output).st_uid == 65534
        done = subprocess.run([*as_nobody, PROGRAM, "report", job.output], env=os.environ | {"CONCLAVE_PYTHON": "/root/private/python"}, capture_output=True,
                              text=True, timeout=100)
        assert done.returncode == 2 and "/root/private/python cannot be run" in done.stderr, done.stdout + done.stderr

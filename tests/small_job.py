"""Small jobs for the tests that start the program: a tiny model, random tokens, and ranks that are started directly.

A rank is a process with torchrun's variables (RANK, WORLD_SIZE, ...); starting them without torchrun saves seconds a test.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAM = os.environ.get("CONCLAVE_PROGRAM", str(ROOT / "build" / "conclave"))
VOCAB = 64
PATIENCE_SECONDS = 120  # no test waits longer for a job that should end by itself; nothing is asserted about less

MODEL = {
    "model_type": "mixtral", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu", "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "initializer_range": 0.02, "tie_word_embeddings": False,
    "num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.01,
}


def write_tokens(prefix, documents, dtype=np.uint16):
    """A Megatron .bin/.idx pair, one sequence a document, by the published format and not by the program's own builder."""
    codes = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}
    lengths = np.array([len(document) for document in documents], np.int32)
    size = np.dtype(dtype).itemsize
    offsets = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) * size
    with open(f"{prefix}.bin", "wb") as file:
        for document in documents:
            file.write(np.asarray(document, dtype).tobytes())
    with open(f"{prefix}.idx", "wb") as file:
        file.write(b"MMIDIDX\0\0" + np.uint64(1).tobytes() + np.uint8(codes[np.dtype(dtype)]).tobytes())
        file.write(np.uint64(len(documents)).tobytes() + np.uint64(len(documents) + 1).tobytes())
        file.write(lengths.tobytes() + offsets.astype(np.int64).tobytes() + np.arange(len(documents) + 1, dtype=np.int64).tobytes())


def random_documents(seed=7, count=40, length=200):
    """Tokens with something to learn: each is mostly the one before it plus 1."""
    random = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        steps = np.where(random.random(length) < 0.8, 1, random.integers(0, VOCAB, length))
        documents.append(np.cumsum(steps) % VOCAB)
    return documents


class SmallJob:
    """A job in a folder of its own. `keys` are {"section.key": value}; `with_keys` gives a variant in the same folder."""

    def __init__(self, folder, keys=None):
        self.folder = pathlib.Path(folder)
        self.keys = {
            "run.output_dir": str(self.folder / "out"), "run.steps": 3, "run.device": "cpu", "run.timeout_seconds": 60,
            "model.config": str(self.folder / "config.json"),
            "data.train": str(self.folder / "tokens"), "data.sequence_length": 16, "data.micro_batch_size": 2,
            "precision.compute": "fp32", "optimizer.lr": 1e-3, "schedule.kind": "constant", "metrics.tensorboard": False,
        }
        self.keys.update(keys or {})
        if not (self.folder / "config.json").exists():
            (self.folder / "config.json").write_text(json.dumps(MODEL))
            write_tokens(self.folder / "tokens", random_documents())

    def with_keys(self, keys):
        return SmallJob(self.folder, {**self.keys, **keys})

    @property
    def output(self):
        return pathlib.Path(self.keys["run.output_dir"])

    @property
    def checkpoints(self):
        return sorted(path.name for path in (self.output / "checkpoints").glob("step-*"))

    def write(self, name="job.yaml"):
        sections = {}
        for key, value in self.keys.items():
            section, name_in_section = key.split(".", 1)
            sections.setdefault(section, {})[name_in_section] = value
        file = self.folder / name
        # JSON is YAML too; one key a line, so that the lines in messages mean something.
        file.write_text(json.dumps(sections, indent=1))
        return file

    def metrics(self):
        with open(self.output / "metrics.jsonl") as file:
            return [json.loads(line) for line in file]

    def start(self, ranks=1, command="train", arguments=()):
        return RunningRanks([PROGRAM, *command.split(), str(self.write()), *map(str, arguments)], ranks, self.folder)

    def run(self, ranks=1, command="train", arguments=()):
        return self.start(ranks, command, arguments).wait()

    def must_run(self, ranks=1, command="train", arguments=()):
        ended = self.run(ranks, command, arguments)
        assert ended.codes == [0] * ranks, ended.errors
        return ended


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Ended:
    """How a job ended: exit codes (minus the signal of a killed rank) and what each rank wrote on standard output and error."""

    def __init__(self, codes, outputs, errors):
        self.codes, self.outputs, self.errors = codes, outputs, errors

    @property
    def text(self):
        return "\n".join(self.outputs + self.errors)


class RunningRanks:
    def __init__(self, command, ranks, folder, launched=True):
        port = free_port()
        self.logs = []
        self.processes = []
        for rank in range(ranks):
            environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
            if ranks > 1:
                environment.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks),
                                   MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            logs = [folder / f"rank{rank}.{kind}" for kind in ("out", "err")]
            self.logs.append(logs)
            with open(logs[0], "wb") as out, open(logs[1], "wb") as err:
                self.processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=err, stdin=subprocess.DEVNULL))

    def wait(self, seconds=PATIENCE_SECONDS):
        """Waits for all ranks. Ranks that are still there after `seconds` are killed, and that fails the test."""
        until = time.monotonic() + seconds
        late = []
        for rank, process in enumerate(self.processes):
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                late.append(rank)
        self.kill()
        outputs, errors = ([logs[kind].read_text(errors="replace") for logs in self.logs] for kind in (0, 1))
        ended = Ended([process.wait() for process in self.processes], outputs, errors)
        assert not late, f"ranks {late} did not end within {seconds} s:\n{ended.text}"
        return ended

    def kill(self):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)

    def wait_until(self, is_so, what, seconds=PATIENCE_SECONDS):
        """Returns when `is_so()`; fails if a rank ends before, or if it takes too long."""
        until = time.monotonic() + seconds
        while not is_so():
            ended = [process.poll() for process in self.processes]
            if any(code is not None for code in ended) or time.monotonic() > until:
                text = self.wait(0.0 if time.monotonic() > until else PATIENCE_SECONDS).text
                raise AssertionError(f"{what} was not seen; exit codes {ended}:\n{text}")
            time.sleep(0.02)

"""Small jobs for the tests that start the program: a tiny model, random tokens, and ranks that are started directly (ranks.py)."""

import json
import pathlib
import subprocess
import zlib

import numpy as np
from ranks import PATIENCE_SECONDS, Ranks, program, succeed

PROGRAM = str(program())
VOCAB = 64

MODEL = {
    "model_type": "mixtral", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu", "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "initializer_range": 0.02, "tie_word_embeddings": False,
    "num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.01,
}


def write_tokens(prefix, documents, dtype=np.uint16, mask=None):
    """A Megatron .bin/.idx pair, one sequence a document, by the published format and not by the program's own builder.

    `mask`: of all tokens 0 or 1, whether each is trained on: a .mask beside a small pair, by docs/data.md.
    """
    codes = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}
    lengths = np.array([len(document) for document in documents], np.int32)
    size = np.dtype(dtype).itemsize
    offsets = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) * size
    with open(f"{prefix}.bin", "wb") as file:
        for document in documents:
            file.write(np.asarray(document, dtype).tobytes())
    with open(f"{prefix}.idx", "wb") as file:
        file.write(b"MMIDIDX\0\0" + np.uint64(1 if mask is None else 2).tobytes() + np.uint8(codes[np.dtype(dtype)]).tobytes())
        file.write(np.uint64(len(documents)).tobytes() + np.uint64(len(documents) + 1).tobytes())
        file.write(lengths.tobytes() + offsets.astype(np.int64).tobytes() + np.arange(len(documents) + 1, dtype=np.int64).tobytes())
    pathlib.Path(f"{prefix}.mask").unlink(missing_ok=True)
    if mask is not None:
        index, tokens = (pathlib.Path(f"{prefix}.{end}").read_bytes() for end in ("idx", "bin"))
        assert len(tokens) <= 64 * 65536 and len(mask) == sum(lengths)
        checksum = zlib.crc32(index + np.uint64(len(tokens)).tobytes() + tokens)
        numbers = np.array([1, len(mask), np.count_nonzero(mask), checksum], np.uint64)
        pathlib.Path(f"{prefix}.mask").write_bytes(b"CNCLMASK" + numbers.tobytes() + np.asarray(mask, np.uint8).tobytes())


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
            "checkpoint.every_minutes": 0,  # a test that wants checkpoints gives checkpoint.every
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

    def has_steps(self, count):
        """For Ranks.wait_until: whether so many steps are done."""
        def enough():
            file = self.output / "metrics.jsonl"
            return file.exists() and file.read_bytes().count(b"\n") >= count
        return enough

    def start(self, ranks=1, command="train", arguments=(), **places):
        """`places`: as ranks.Ranks takes them."""
        return Ranks(ranks, [*command.split(), self.write(), *arguments], **places)

    def run(self, ranks=1, command="train", arguments=(), **places):
        return self.start(ranks, command, arguments, **places).wait()

    def export(self, folder, *arguments):
        """The newest checkpoint as a Hugging Face folder; an older one is replaced. How the command ended."""
        return subprocess.run([PROGRAM, "ckpt", "export", self.output, folder, "--overwrite", *arguments], capture_output=True, text=True,
                              timeout=PATIENCE_SECONDS)

    def must_export(self, folder, *arguments):
        ended = self.export(folder, *arguments)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return folder

    def must_run(self, ranks=1, command="train", arguments=(), **places):
        return succeed(self.run(ranks, command, arguments, **places))

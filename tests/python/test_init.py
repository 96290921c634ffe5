"""`conclave init`: a job file and a model to begin with.

Oracles: Transformers, which builds the model of the written config.json; PyYAML, which reads the job; `conclave validate` and `train`, which take it; and the
file system for what must not change.
"""

import json
import os
import pty
import re
import select
import subprocess

import pytest
import torch
import yaml
from ranks import PATIENCE_SECONDS
from small_job import PROGRAM, random_documents, write_tokens
from transformers import AutoConfig, AutoModelForCausalLM

HELP = subprocess.run([PROGRAM, "init", "--help"], capture_output=True, text=True, check=True).stdout
FAMILIES = re.search(r"--family \w+\s+((?:[\w]+,\s+)*\w+)\n", HELP)[1].replace(",", " ").split()
ENDS = 3  # a token behind each document


@pytest.fixture
def data(tmp_path):
    """A set in two parts, as `conclave data build` leaves it, of 64 ids."""
    documents = [[token for token in document if token != ENDS] + [ENDS] for document in random_documents(count=60, length=300)]
    write_tokens(tmp_path / "set-train", documents)
    write_tokens(tmp_path / "set-validation", documents[:8])
    return tmp_path / "set"


def init(folder, *words, code=0):
    done = subprocess.run([PROGRAM, "init", *map(str, words)], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def write_device(file, memory):
    """A description of a device with so much memory for each rank, by the example that `plan --help` prints."""
    text = subprocess.run([PROGRAM, "plan", "--help"], capture_output=True, text=True, check=True).stdout
    text = re.sub(r"(?m)^(  bytes: )\S+", rf"\g<1>{memory:.6e}", text[text.index("\ndevice:") :])
    file.write_text(re.sub(r"(?m)^(  reserved_bytes: )\S+", r"\g<1>0", text))


def options(data, family="mixtral", size="tiny"):
    return ["--family", family, "--size", size, "--data", data, "--device", "cpu"]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_a_model_that_transformers_builds(family, data, tmp_path):
    said = init(tmp_path, *options(data, family))
    config = AutoConfig.from_pretrained(tmp_path / "job-model")
    assert config.model_type == family and config.vocab_size == 64 and config.eos_token_id == ENDS
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    assert f"{parameters / 1e6:.1f} million parameters" in said
    job = yaml.safe_load((tmp_path / "job.yaml").read_text())
    assert job["parallel"].get("expert_parallel_degree", 1) == (2 if hasattr(config, "num_experts_per_tok") else 1)
    subprocess.run([PROGRAM, "validate", "job.yaml", "--world", "2", "--quiet"], cwd=tmp_path, check=True, timeout=PATIENCE_SECONDS)


def test_the_job_is_commented_and_trains(data, tmp_path):
    said = init(tmp_path, *options(data), "--output", "jobs/first.yaml", "--ranks", 2)
    text = (tmp_path / "jobs/first.yaml").read_text()
    keys = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(keys) > 12 and all("  # " in line for line in keys)
    assert "conclave train jobs/first.yaml --ranks 2" in said and "conclave train jobs/first.yaml --ranks 2" in text
    job = yaml.safe_load(text)
    assert job["model"]["config"] == "jobs/first-model" and job["data"] == {**job["data"], "train": f"{data}-train", "validation": f"{data}-validation"}
    done = subprocess.run([PROGRAM, "train", "jobs/first.yaml", "--ranks", "2", "--set", "run.steps=2", "--set",
                           "schedule.warmup_steps=1"], cwd=tmp_path, capture_output=True, text=True,
                          timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/first/metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["job.yaml", "job-model"])
def test_nothing_is_replaced(name, data, tmp_path):
    (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert f"{name}" in init(tmp_path, *options(data), code=2)
    assert (tmp_path / name).read_text() == "mine" and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("words", "said"), [
    (["--family", "mixtrl"], "Did you mean mixtral?"),
    (["--size", "huge"], "must be one of tiny, small, medium, large"),
    (["--data", "nowhere"], "there are no token files nowhere.bin"),
    (["--vocab-size", "10"], "the data have the token 63"),
    (["--ranks", "0"], "--ranks"),
    (["--ranks", "100000"], "too few for 100000 ranks"),
    (["--size", "large"], "does not fit"),
    (["--device", "tpu"], "tpu"),
    (["--output", "nowhere/"], "must be the name of a file"),
    (["--output", "set-train.bin/job.yaml"], "set-train.bin"),
])
def test_mistakes_are_refused_and_leave_nothing(words, said, data, tmp_path):
    given = dict(zip(options(data)[::2], options(data)[1::2])) | dict(zip(words[::2], words[1::2]))
    if "large" in words:  # of what no machine with a name has
        write_device(tmp_path / "small.yaml", 1e9)
        given["--device"] = "small.yaml"
    before = sorted(tmp_path.rglob("*"))
    told = init(tmp_path, *(word for pair in given.items() for word in pair), code=2)
    assert said in told and told.startswith("error: ") and "Traceback" not in told
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_terminal_what_is_missing_is_named(tmp_path):
    assert "--family, --data are missing, and there is no terminal to ask on" in init(tmp_path, "--size", "tiny", code=2)


def test_three_questions_on_a_terminal(data, tmp_path):
    terminal, program = pty.openpty()
    process = subprocess.Popen([PROGRAM, "init", "--device", "cpu"], cwd=tmp_path, stdin=program, stdout=program, stderr=program)
    os.close(program)
    heard = ""

    def answer(after, text):
        nonlocal heard
        while after not in heard:
            assert select.select([terminal], [], [], PATIENCE_SECONDS)[0], heard
            heard += os.read(terminal, 4096).decode()
        heard = heard[heard.index(after) + len(after) :]
        os.write(terminal, text.encode() + b"\n")

    answer("family [mixtral]: ", "qwen")
    answer("it must be one of", "")
    answer("size [tiny]: ", "")
    answer("data: ", "absent")
    answer("there are no token files", str(data))
    assert process.wait(PATIENCE_SECONDS) == 0
    os.close(terminal)
    assert json.loads((tmp_path / "job-model/config.json").read_text())["model_type"] == "mixtral"


def test_a_model_that_does_not_fit_takes_the_fastest_layout_that_does(data, tmp_path):
    """The settings that were chosen are in the job, and the plan agrees."""
    write_device(tmp_path / "large.yaml", 1e12)
    words = ["--family", "mixtral", "--size", "small", "--data", data, "--ranks", 4]
    needed = float(re.search(r"([\d.]+) MiB of", init(tmp_path, *words, "--device", "large.yaml", "--output", "first.yaml"))[1])
    write_device(tmp_path / "device.yaml", 0.9 * needed * 2**20)
    said = init(tmp_path, *words, "--device", "device.yaml")
    chosen = re.findall(r"chosen so that it fits in memory: (\w+)\.(\w+)=(\S+)", said)
    job = yaml.safe_load((tmp_path / "job.yaml").read_text())
    assert chosen and all(str(job[section][key]).lower() == value for section, key, value in chosen)
    plan = subprocess.run([PROGRAM, "plan", "job.yaml", "--world", "4", "--device", "device.yaml"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "fits in device.yaml" in plan.stdout and "DOES NOT FIT" not in plan.stdout.partition("traffic")[0]

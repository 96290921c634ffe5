"""A user's mistake: found before any work, said once whatever the number of ranks, with the value and the remedy; exit code 2.

Oracle: the table in docs/errors.md for the exit code; for the messages, the facts that a user needs to repair the mistake (key, value, file,
position, what would be right), as given by the test that made the mistake.
"""

import json
import shutil
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from ranks import PATIENCE_SECONDS, run_ranks
from small_job import MODEL, PROGRAM, VOCAB, SmallJob, random_documents, write_tokens


def refusals(ended):
    """What the ranks said from the first 'error:' on; the log before it is not of interest."""
    texts = []
    for text in ended.errors:
        lines = text.splitlines()
        first = next((number for number, line in enumerate(lines) if line.startswith("error:")), len(lines))
        texts.append("\n".join(lines[first:]))
    return texts


def assert_refused(ended, *facts, mistakes=1):
    assert ended.codes == [2] * len(ended.codes), ended.text
    first, *others = refusals(ended)
    assert first.count("error:") == mistakes, first
    assert not any(others), "printed by several ranks:\n" + ended.text
    for fact in facts:
        assert str(fact) in first, f"{fact!r} is not in: {first}"
    assert "invariant" not in ended.text and "terminate" not in ended.text


# ---- the job file

KEYS = [
    ("unknown-key", {"parallel.expert_paralel_degree": 2}, ["unknown key parallel.expert_paralel_degree", "Did you mean parallel.expert_parallel_degree?"]),
    ("key-of-another-section", {"run.micro_batch_size": 2}, ["unknown key run.micro_batch_size", "data.micro_batch_size?"]),
    ("unknown-key-near-none", {"run.colour": 2}, ["unknown key run.colour", "The keys of run are", "steps"]),
    ("unknown-section", {"paralel.expert_parallel_degree": 2}, ["unknown section paralel", "Did you mean parallel?"]),
    ("unknown-section-near-none", {"zzzzzz.a": 2}, ["unknown section zzzzzz", "The sections are run, model"]),
    ("wrong-type", {"run.steps": "many"}, ["run.steps", "many", "a whole number"]),
    ("fraction", {"run.steps": 2.5}, ["run.steps is 2.5", "a whole number"]),
    ("list", {"data.micro_batch_size": [1, 2]}, ["data.micro_batch_size is a list", "a whole number"]),
    ("flag", {"parallel.reshard_after_forward": "yes"}, ["parallel.reshard_after_forward", "yes", "true, false or the units that stay gathered"]),
    ("too-small", {"run.steps": 0}, ["run.steps is 0", "at least 1"]),
    ("too-large", {"optimizer.beta1": 1.0}, ["optimizer.beta1 is 1", "less than 1"]),
    ("no-choice", {"schedule.kind": "cosin"}, ["schedule.kind", "cosin", "cosine, linear or constant"]),
    ("not-in-this-version", {"run.deterministic": False}, ["run.deterministic is false", "not supported in this version", "use true"]),
    ("not-together", {"moe.dispatcher": "all_gather", "moe.overload": "spill"}, ["moe.overload is spill", "moe.dispatcher is all_gather", "all_to_all"]),
    ("unused-by-the-rule", {"moe.moe_load_balancing": "bias", "moe.moe_aux_loss_coeff": 0.1},
     ["moe.moe_aux_loss_coeff is 0.1", "moe.moe_load_balancing is bias", "does not use it"]),
    ("contradiction", {"memory.activation_offloading": True}, ["memory.activation_offloading", "memory.activation_checkpointing is none"]),
    ("unused", {"memory.offload_folder": "/tmp"}, ["memory.offload_folder is /tmp", "memory.activation_offloading is false"]),
    ("no-such-unit", {"parallel.reshard_after_forward": "all but layer.1"},
     ["parallel.reshard_after_forward is all but layer.1", "the model has no unit layer.1", "Did you mean layers.1?"]),
    ("range-beyond-the-model", {"parallel.reshard_after_forward": "all but layers.0-7"}, ["the model has no unit layers.2", "layers.1"]),
    ("unit-used-once", {"parallel.reshard_after_forward": "all but head"}, ["head is used once in a micro-step"]),
    ("rule-misspelt", {"parallel.reshard_after_forward": "all except layers.1"},
     ["all except layers.1", "true, false or the units that stay gathered", "all but layers.4-7"]),
    ("fp8-on-a-cpu", {"precision.experts": "fp8", "precision.compute": "auto"}, ["precision.experts is fp8", "run.device is cpu", "H100"]),
    ("fp8-in-fp32", {"precision.experts": "fp8", "run.device": "auto"}, ["precision.experts is fp8", "precision.compute is fp32", "bf16"]),
    ("warm-up-longer-than-the-run", {"schedule.warmup_steps": 9}, ["schedule.warmup_steps is 9", "run.steps is 3"]),
    ("no-such-resume", {"checkpoint.resume": "/no/such/step"}, ["checkpoint.resume is /no/such/step", "no such folder"]),
]


@pytest.mark.parametrize("keys, facts", [pytest.param(keys, facts, id=name) for name, keys, facts in KEYS])
def test_a_mistake_in_the_job_file(keys, facts, tmp_path):
    job = SmallJob(tmp_path, keys)
    assert_refused(job.run(), *facts, "job.yaml, line ")
    assert not job.output.exists()


def test_the_line_of_the_mistake(tmp_path):
    job = SmallJob(tmp_path, {"parallel.prefetch_unit": 1})
    lines = job.write().read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "prefetch_unit" in text)
    assert_refused(job.run(), f"job.yaml, line {line})")


def test_all_mistakes_at_once_and_once_for_two_ranks(tmp_path):
    job = SmallJob(tmp_path, {"run.steps": "abc", "optimizer.lr": -1, "data.sequence_len": 3})
    assert_refused(job.run(2), "run.steps", "optimizer.lr is -1", "Did you mean data.sequence_length?", mistakes=3)


def test_a_missing_required_key(tmp_path):
    job = SmallJob(tmp_path)
    del job.keys["model.config"]
    assert_refused(job.run(), "model.config is missing")


def test_training_without_data(tmp_path):
    job = SmallJob(tmp_path)
    del job.keys["data.train"]
    assert_refused(job.run(2), "data.train is missing")


def test_not_yaml(tmp_path):
    job = SmallJob(tmp_path)
    file = job.write()
    file.write_text("run:\n  steps: [1\nmodel: {")
    ended = subprocess.run([PROGRAM, "train", str(file)], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert ended.returncode == 2 and ended.stderr.count("error:") == 1
    assert "not valid YAML" in ended.stderr and "line " in ended.stderr


@pytest.mark.parametrize("command", ["train", "validate", "eval"])
def test_every_command_refuses_alike(command, tmp_path):
    assert_refused(SmallJob(tmp_path, {"run.stepz": 2}).run(command=command), "unknown key run.stepz")


# ---- degrees and batch sizes


@pytest.mark.parametrize("ranks, keys, facts", [
    pytest.param(2, {"parallel.expert_parallel_degree": 3}, ["parallel.expert_parallel_degree is 3", "8 experts", "Use 1 or 2."], id="experts"),
    pytest.param(2, {"parallel.expert_parallel_degree": 4}, ["parallel.expert_parallel_degree is 4", "2 ranks", "Use 1 or 2."], id="expert-world"),
    pytest.param(4, {"parallel.hybrid_shard_degree": 3}, ["parallel.hybrid_shard_degree is 3", "4 ranks", "groups of 3 x 1", "1, 2 or 4."], id="shard-world"),
    pytest.param(1, {"parallel.expert_parallel_degree": 2}, ["parallel.expert_parallel_degree is 2", "1 rank ", "--ranks 2", "--world 2"], id="one-rank"),
    pytest.param(2, {"data.global_batch_size": 6}, ["data.global_batch_size is 6", "2 ranks takes 4", "Use 4 or 8."], id="batch"),
    pytest.param(2, {"data.sequence_length": 100}, ["data.sequence_length is 100", "max_position_embeddings 64"], id="sequence"),
])
def test_what_does_not_fit_the_world_or_the_model(ranks, keys, facts, tmp_path):
    assert_refused(SmallJob(tmp_path, keys).run(ranks), *facts)


FP8 = {"precision.experts": "fp8", "precision.compute": "auto", "run.device": "auto"}


def test_fp8_of_a_model_without_whole_blocks(tmp_path):
    job = SmallJob(tmp_path, FP8)
    assert_refused(job.run(), "precision.experts is fp8", "hidden_size is 32", "128", "job.yaml, line ")


def test_fp8_where_there_is_no_gpu(tmp_path):
    job = SmallJob(tmp_path, FP8)
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, "hidden_size": 128, "intermediate_size": 128}))
    assert_refused(job.run(2, env={"CUDA_VISIBLE_DEVICES": ""}), "precision.experts is fp8", "CPU", "H100")
    assert not job.output.exists()


def test_a_number_of_experts_that_does_not_divide(tmp_path):
    job = SmallJob(tmp_path, {"parallel.expert_parallel_degree": 2})
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, "num_local_experts": 7}))
    assert_refused(job.run(2), "parallel.expert_parallel_degree is 2", "7 experts", "Use 1.")


def test_by_the_launcher_it_is_said_once_too(tmp_path):
    job = SmallJob(tmp_path, {"parallel.expert_parallel_degree": 3})
    assert_refused(job.run(arguments=["--ranks", 2]), "parallel.expert_parallel_degree is 3", "Use 1 or 2.")


def test_by_the_launcher_a_mistake_that_only_the_ranks_find(tmp_path):
    assert_refused(SmallJob(tmp_path, {"data.train": "/no/such/tokens"}).run(arguments=["--ranks", 2]), "/no/such/tokens.idx")


# ---- the model


def test_no_model_config(tmp_path):
    assert_refused(SmallJob(tmp_path, {"model.config": "/no/such/model"}).run(2), "/no/such/model", "No such file or directory")


@pytest.mark.parametrize("change, facts", [
    pytest.param({"model_type": "gpt2"}, ['model_type is "gpt2"', "mixtral"], id="model_type"),
    pytest.param({"num_experts_per_tok": 9}, ["num_experts_per_tok is 9", "8 experts", "at most 8"], id="choices"),
    pytest.param({"num_key_value_heads": 3}, ["num_key_value_heads is 3", "num_attention_heads is 4"], id="heads"),
    pytest.param({"hidden_size": None}, ["hidden_size is missing"], id="missing"),
    pytest.param({"hidden_size": -1}, ["hidden_size is -1"], id="negative"),
])
def test_a_model_config_that_cannot_be_trained(change, facts, tmp_path):
    job = SmallJob(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, **change}))
    assert_refused(job.run(2), *facts, "config.json")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A Hugging Face folder of the small model."""
    job = SmallJob(tmp_path_factory.mktemp("weights"), {"run.steps": 1, "checkpoint.every": 1})
    job.must_run()
    return job.must_export(job.folder / "weights")


GATE = "model.layers.1.block_sparse_moe.gate.weight"


def init_from(weights, folder, change):
    shutil.copytree(weights, folder / "weights")
    tensors = load_file(folder / "weights/model.safetensors")
    change(tensors)
    save_file(tensors, folder / "weights/model.safetensors")
    return SmallJob(folder, {"model.init_from": str(folder / "weights")})


def test_init_from_without_a_tensor(weights, tmp_path):
    assert_refused(init_from(weights, tmp_path, lambda tensors: tensors.pop(GATE)).run(2), "layers.1", "gate.weight", "has no tensor")


def test_init_from_with_another_shape(weights, tmp_path):
    job = init_from(weights, tmp_path, lambda tensors: tensors.update({GATE: np.zeros((4, 32), np.float32)}))
    assert_refused(job.run(2), GATE, "[4, 32]", "[8, 32]")


def test_init_from_with_a_tensor_too_many(weights, tmp_path):
    job = init_from(weights, tmp_path, lambda tensors: tensors.update({"model.extra": np.zeros(3, np.float32)}))
    assert_refused(job.run(2), "model.extra")


def test_init_from_a_truncated_file(weights, tmp_path):
    job = init_from(weights, tmp_path, lambda tensors: None)
    file = tmp_path / "weights/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert_refused(job.run(2), "model.safetensors")


def test_init_from_nowhere(tmp_path):
    assert_refused(SmallJob(tmp_path, {"model.init_from": "/no/such/weights"}).run(2), "/no/such/weights")


# ---- the data


def test_no_data_file(tmp_path):
    assert_refused(SmallJob(tmp_path, {"data.train": "/no/such/tokens"}).run(2), "/no/such/tokens.idx", "conclave data build")


def cut(suffix, keep):
    def prepare(folder):
        file = folder / f"tokens{suffix}"
        file.write_bytes(file.read_bytes()[:keep])
    return prepare


BAD_FILES = [
    ("idx-cut", cut(".idx", -20), ["tokens.idx", "truncated"]),
    ("idx-cut-in-header", cut(".idx", 20), ["tokens.idx, byte 20", "truncated"]),
    ("idx-empty", cut(".idx", 0), ["tokens.idx"]),
    ("bin-cut", cut(".bin", -20), ["tokens.bin, byte 15980", "sequence 39", "truncated"]),
    ("bin-empty", cut(".bin", 0), ["tokens.bin"]),
    ("bin-missing", lambda folder: (folder / "tokens.bin").unlink(), ["tokens.bin"]),
    ("foreign", lambda folder: (folder / "tokens.idx").write_bytes(b"PK\x03\x04" * 300), ["tokens.idx, byte 0", "MMIDIDX"]),
    ("too-few-tokens", lambda folder: write_tokens(folder / "tokens", [[1, 2, 3]]), ["tokens", "3"]),
]


@pytest.mark.parametrize("prepare, facts", [pytest.param(prepare, facts, id=name) for name, prepare, facts in BAD_FILES])
def test_a_bad_data_file(prepare, facts, tmp_path):
    job = SmallJob(tmp_path)
    prepare(tmp_path)
    assert_refused(job.run(2), *facts)


def write_one_bad_token(folder, document):
    documents = random_documents()
    documents[document][5] = VOCAB
    write_tokens(folder / "tokens", documents)
    return f"byte {(200 * document + 5) * 2}"


def test_validate_finds_a_token_outside_the_vocabulary(tmp_path):
    job = SmallJob(tmp_path)
    place = write_one_bad_token(tmp_path, 3)
    assert_refused(job.run(command="validate"), f"tokens.bin, {place}", f"token id {VOCAB}", f"vocab_size {VOCAB}", "token 5 of document 3")


@pytest.mark.parametrize("document", [3, pytest.param(17, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.slow)])
def test_training_stops_at_a_token_outside_the_vocabulary(document, tmp_path):
    # One rank alone comes upon it (an epoch has 499 samples). That rank's verdict is said once, and both end.
    job = SmallJob(tmp_path, {"run.steps": 200})
    place = write_one_bad_token(tmp_path, document)
    ended = job.run(2)
    assert sorted(ended.codes) in ([2, 2], [2, 3]), ended.text
    said = "\n".join(refusals(ended))
    assert said.count("error:") == 1, ended.text
    assert f"tokens.bin, {place}" in said and f"token id {VOCAB}" in said


# ---- going on with a run


@pytest.fixture
def stopped_job(tmp_path):
    job = SmallJob(tmp_path, {"checkpoint.every": 3})
    job.must_run(2)
    return job.with_keys({"run.steps": 6})


@pytest.mark.parametrize("keys, facts", [
    pytest.param({"checkpoint.resume": "never"}, ["checkpoint.resume is never", "run.output_dir"], id="never"),
    pytest.param({"run.seed": 7}, ["run.seed is 7", "1234"], id="seed"),
    pytest.param({"data.micro_batch_size": 4}, ["data.global_batch_size is 8", "4"], id="batch"),
    pytest.param({"data.sequence_length": 8}, ["data.sequence_length is 8", "16"], id="sequence"),
])
def test_a_run_goes_on_only_as_it_began(keys, facts, stopped_job):
    before = stopped_job.metrics()
    assert_refused(stopped_job.with_keys(keys).run(2), *facts)
    assert stopped_job.checkpoints == ["step-00000003"] and stopped_job.metrics() == before
    stopped_job.must_run(2)  # the refusal left the run as it was
    assert len(stopped_job.metrics()) == 6


def test_a_run_does_not_go_on_with_other_data(stopped_job):
    write_tokens(stopped_job.folder / "tokens", random_documents(seed=8))
    assert_refused(stopped_job.run(2), "data.train", "fingerprint", "step-00000003")


def test_a_run_does_not_go_on_with_another_model(stopped_job):
    (stopped_job.folder / "config.json").write_text(json.dumps({**MODEL, "intermediate_size": 64}))
    assert_refused(stopped_job.run(2), "model.config", "64", "48")


# ---- the command line (more in tests/python/test_command_line.py)


def test_a_mistake_in_an_override(tmp_path):
    assert_refused(SmallJob(tmp_path).run(arguments=["--set", "run.stps=4"]), "unknown key run.stps", "run.steps", "--set")


def test_other_ranks_than_the_launcher_started(tmp_path):
    assert_refused(SmallJob(tmp_path).run(2, arguments=["--ranks", 3]), "--ranks is 3", "2 ranks")


def test_contradicting_variables_of_the_launcher(tmp_path):
    job = SmallJob(tmp_path)
    environment = {"RANK": "5", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    ended = subprocess.run([PROGRAM, "train", str(job.write())], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert ended.returncode == 2 and "RANK" in ended.stderr and ended.stderr.count("error:") == 1, ended


def test_a_disk_without_room_for_offloaded_activations_ends_the_run_before_its_first_step(tmp_path):
    # 2^26 - 1 sequences of 16 x 32 fp32 values are 128 GiB a layer, of which all but one leave. No test machine has that, and nothing of it is written.
    job = SmallJob(tmp_path, {"memory.activation_checkpointing": "full", "memory.activation_offloading": True, "memory.activation_loading_horizon": 1,
                              "memory.offload_folder": str(tmp_path / "scratch"), "data.micro_batch_size": 2**26 - 1})
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, "num_hidden_layers": 33}))
    ended = job.run(2)
    assert ended.codes == [1, 1], ended.text  # a failure of the machine, see docs/errors.md
    for fact in ("offloaded activations need 4194304.0 MiB", str(tmp_path / "scratch"), "MiB are free", "memory.offload_folder"):
        assert fact in ended.errors[0], ended.text
    assert not list((tmp_path / "scratch").iterdir())
    assert job.metrics() == []


def test_offloading_leaves_nothing_behind_a_killed_run(tmp_path):
    job = SmallJob(tmp_path, {"memory.activation_checkpointing": "full", "memory.activation_offloading": True, "memory.activation_loading_horizon": 1,
                              "memory.offload_folder": str(tmp_path / "scratch"), "run.steps": 100000})
    running = job.start()
    running.wait_until(lambda: (job.output / "metrics.jsonl").exists() and len(job.metrics()) > 2, "a third step")
    assert (tmp_path / "scratch").is_dir()
    running.kill()
    running.wait()
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("rule", ["sinkhorn", "balanced", "bias"])
def test_trace_refuses_a_rule_that_chooses_other_experts_in_training(rule, tmp_path):
    arguments = ["trace", "--model", tmp_path, "--tokens", tmp_path / "tokens", "--out", tmp_path / "out", "--set", f"moe.moe_load_balancing={rule}"]
    assert_refused(run_ranks(1, arguments), "moe.moe_load_balancing", "Use aux_loss or none", f"--set moe.moe_load_balancing={rule}")

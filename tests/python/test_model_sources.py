"""What a run starts from: Hugging Face folders as they lie about, right, wrong and half right.

Oracle: Transformers on the very folder, for which weights it holds; for what is refused, the folder's own two statements, which differ.
"""

import json
import os
import shutil

import pytest
import torch
from ranks import run_ranks, succeed
from safetensors.torch import load_file, save_file, save_model
from small_job import MODEL, SmallJob
from torch_ranks import run_torch_ranks
from transformers import MixtralConfig, MixtralForCausalLM

import conclave
from conclave.checkpoint_files import CheckpointFolder

TOLERANCE = 1e-5  # of the largest logit: fp32 sums in another order


def mixtral(seed=1, **changes):
    torch.manual_seed(seed)
    config = MixtralConfig(**{**MODEL, "initializer_range": 0.2, **changes})
    return MixtralForCausalLM._from_config(config, attn_implementation="eager").eval()


def folder_of(path, model, **arguments):
    model.save_pretrained(path, **arguments)
    return path


def job_from(tmp_path, folder, **config):
    """A job that starts from `folder`; its own config says MODEL and `config`."""
    job = SmallJob(tmp_path, {"model.init_from": str(folder), "run.steps": 1})
    (tmp_path / "config.json").write_text(json.dumps({**MODEL, "initializer_range": 0.2, **config}))
    return job


def assert_refused(ended, *facts):
    assert ended.codes == [2] * len(ended.codes), ended.text
    for fact in facts:
        assert fact in ended.text, f"{fact!r} is not in: {ended.text}"
    assert "Traceback" not in ended.text and "filesystem error" not in ended.text and "json.exception" not in ended.text


def traced_logits(folder, tmp_path):
    """What the program computes with the folder's weights."""
    tokens = torch.arange(24).view(1, 24) * 7 % MODEL["vocab_size"]
    save_file({"input_ids": tokens, "labels": tokens.clone()}, tmp_path / "tokens.safetensors")
    succeed(run_ranks(1, ["trace", "--model", folder, "--tokens", tmp_path / "tokens.safetensors", "--out", tmp_path / "out.safetensors"]))
    return tokens, load_file(tmp_path / "out.safetensors")["logits"]


def assert_read_as_transformers_does(folder, tmp_path):
    tokens, logits = traced_logits(folder, tmp_path)
    with torch.no_grad():
        expected = MixtralForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()(tokens).logits
    assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()


def load_alone(folder, changes):
    """conclave.load_pretrained into a model of the folder's config: its parameters, or the refusal."""
    conclave.init({"expert_parallel_degree": 1})
    config = MixtralConfig.from_pretrained(folder)
    for key, value in changes.items():
        setattr(config, key, value)
    model = conclave.transform(MixtralForCausalLM(config))
    try:
        conclave.load_pretrained(model, folder)
    except conclave.CheckpointError as error:
        return str(error)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def loaded(folder, **changes):
    return run_torch_ranks(1, load_alone, folder, changes)[0]


# ---- another model than model.config says


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("source"), mixtral())


DIFFERENCES = [
    ("rope_theta", 5000.0), ("rms_norm_eps", 1e-6), ("sliding_window", 8), ("num_experts_per_tok", 3), ("tie_word_embeddings", True),
    ("head_dim", 16), ("num_local_experts", 4), ("hidden_size", 64), ("vocab_size", 96),
]


@pytest.mark.parametrize("key, value", DIFFERENCES, ids=[key for key, _ in DIFFERENCES])
def test_a_config_that_says_something_else_is_refused_by_its_key(key, value, source, tmp_path):
    job = job_from(tmp_path, source, **{key: value})
    facts = [f"{key} is ", f"but that of model.config is {json.dumps(value)}", f"Set {key} to ", str(source / "config.json")]
    assert_refused(job.run(1, "validate"), *facts)
    assert_refused(job.run(1, "plan"), *facts)


def test_all_differences_are_told_at_once_and_before_any_rank_starts(source, tmp_path):
    job = job_from(tmp_path, source, **dict(DIFFERENCES[:4]))
    facts = [f"{key} is " for key, _ in DIFFERENCES[:4]]
    launched = job.run(arguments=["--ranks", 2])
    assert not job.output.exists()
    for ended in (launched, job.run(2)):
        assert_refused(ended, *facts)
        assert ended.text.count("error:") == 4


def test_evaluation_of_a_folder_refuses_it_too(source, tmp_path):
    job = job_from(tmp_path, source, rope_theta=5000.0).with_keys({"model.init_from": None, "data.validation": str(tmp_path / "tokens")})
    assert_refused(job.run(1, "eval", ["--hugging-face", source]), "rope_theta is 10000.0")


def test_what_changes_no_number_may_differ(source, tmp_path):
    job = job_from(tmp_path, source, max_position_embeddings=4096, router_aux_loss_coef=0.5, router_jitter_noise=0.1, bos_token_id=None,
                   initializer_range=0.5, num_key_value_heads=2, rope_scaling=None)
    succeed(job.run(1, "validate"))
    job.must_run()


# ---- what validate and plan look at


def shards_of(folder):
    return sorted(folder.glob("model-*.safetensors"))


def missing(folder):
    shutil.rmtree(folder)
    return "No such file or directory"


def without_config(folder):
    (folder / "config.json").unlink()
    return "holds no config.json"


def without_a_shard(folder):
    shard = shards_of(folder)[1]
    shard.unlink()
    return f"names {shard.name}, which is not in the folder"


def with_a_cut_shard(folder):
    shard = shards_of(folder)[-1]
    shard.write_bytes(shard.read_bytes()[:-8])
    return f"{shard.name} is not a valid safetensors file"


def without_any_weights(folder):
    for file in folder.glob("model*"):
        file.unlink()
    return "holds neither model.safetensors nor model.safetensors.index.json"


def of_another_vocabulary(folder):
    shutil.rmtree(folder)
    folder_of(folder, mixtral(vocab_size=70), max_shard_size="100KB")
    return "Set vocab_size to 70 in model.config, or set model.resize_vocabulary to 64"


def with_rows_too_few(folder):
    """The config is right, the weights are not."""
    shard = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]["lm_head.weight"]
    save_file({**load_file(shard), "lm_head.weight": torch.zeros(60, 32)}, shard)
    return "has shape [60, 32], but the model's configuration makes it [64, 32]"


DAMAGES = [missing, without_config, without_a_shard, with_a_cut_shard, without_any_weights, of_another_vocabulary, with_rows_too_few]


@pytest.mark.parametrize("damage", DAMAGES)
def test_validate_and_plan_look_at_what_training_reads(damage, tmp_path):
    folder = folder_of(tmp_path / "model", mixtral(), max_shard_size="100KB")
    assert len(shards_of(folder)) > 2
    job = job_from(tmp_path, folder)
    succeed(job.run(1, "validate"))
    succeed(job.run(1, "plan"))
    fact = damage(folder)
    for command in ("validate", "plan", "train"):
        assert_refused(job.run(1, command), fact)


def test_a_run_that_goes_on_from_its_checkpoint_does_not_need_its_source_any_more(tmp_path):
    folder = folder_of(tmp_path / "model", mixtral())
    job = job_from(tmp_path, folder).with_keys({"checkpoint.every": 1})
    job.must_run()
    shutil.rmtree(folder)
    succeed(job.run(1, "validate"))
    longer = job.with_keys({"run.steps": 2})
    longer.must_run()
    assert_refused(longer.with_keys({"run.output_dir": str(tmp_path / "another")}).run(1, "validate"), str(folder))


# ---- tied embeddings


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("tied"), mixtral(tie_word_embeddings=True))


def with_tensors(source, path, change):
    shutil.copytree(source, path)
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED_FORMS = {
    "embedding alone": lambda tensors: None,
    "head alone": lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDING)}),
    "both alike": lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}),
    "both alike, one in fp64": lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].double()}),
}


@pytest.mark.parametrize("form", TIED_FORMS)
def test_a_tied_model_loads_under_either_name(form, tied, tmp_path):
    folder = with_tensors(tied, tmp_path / "model", TIED_FORMS[form])
    assert_read_as_transformers_does(folder, tmp_path)
    job = job_from(tmp_path, folder, tie_word_embeddings=True)
    succeed(job.run(1, "validate"))
    (embedding,) = [value for name, value in loaded(folder).items() if name in (EMBEDDING, HEAD)]
    assert torch.equal(embedding, load_file(tied / "model.safetensors")[EMBEDDING])


def test_a_tied_model_of_safetensors_own_save_model_loads(tied, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tied, folder)
    model = MixtralForCausalLM.from_pretrained(tied)
    save_model(model, folder / "model.safetensors")  # one of the two names, whichever it takes
    assert len({EMBEDDING, HEAD} & load_file(folder / "model.safetensors").keys()) == 1
    assert_read_as_transformers_does(folder, tmp_path)


TWO_HEADS = {
    "another matrix": lambda tensors: tensors.update({HEAD: torch.randn(64, 32)}),
    "another last element": lambda tensors: tensors.update({HEAD: torch.cat([tensors[EMBEDDING].flatten()[:-1], torch.ones(1)]).view(64, 32)}),
    "not a number": lambda tensors: tensors.update({HEAD: torch.full((64, 32), torch.nan)}),
}


@pytest.mark.parametrize("form", TWO_HEADS)
def test_a_tied_model_with_two_matrices_is_refused(form, tied, tmp_path):
    folder = with_tensors(tied, tmp_path / "model", TWO_HEADS[form])
    job = job_from(tmp_path, folder, tie_word_embeddings=True)
    for ended in (job.run(1, "validate"), job.run(2)):
        assert_refused(ended, HEAD, EMBEDDING, "different values", "Set tie_word_embeddings to false")
    assert "different values" in loaded(folder)


def test_an_untied_model_without_a_head_is_refused(source, tmp_path):
    folder = with_tensors(source, tmp_path / "model", lambda tensors: tensors.pop(HEAD))
    assert_refused(job_from(tmp_path, folder).run(1, "validate"), "has no tensor \"lm_head.weight\"", "tie_word_embeddings must be true")


def test_an_export_of_a_tied_model_is_what_transformers_writes(tied, tmp_path):
    job = job_from(tmp_path, tied, tie_word_embeddings=True).with_keys({"checkpoint.every": 1, "optimizer.lr": 1e-30, "optimizer.weight_decay": 0})
    job.must_run()
    export = load_file(job.must_export(tmp_path / "export") / "model.safetensors")
    expected = load_file(tied / "model.safetensors")
    assert export.keys() == expected.keys()
    assert all(torch.equal(export[name], tensor) for name, tensor in expected.items())


# ---- an index and a single file


def stale_shards(folder):
    folder_of(folder, mixtral(seed=2), max_shard_size="100KB")


def stale_index_alone(folder):
    stale_shards(folder)
    for shard in folder.glob("model-*.safetensors"):
        shard.unlink()


def broken_index(folder):
    (folder / "model.safetensors.index.json").write_text("{")


def older_pickles(folder):
    torch.save(mixtral(seed=2).state_dict(), folder / "pytorch_model.bin")


@pytest.mark.parametrize("leftovers", [stale_shards, stale_index_alone, broken_index, older_pickles])
def test_a_new_single_file_beside_leftovers_is_what_all_three_take(leftovers, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    leftovers(folder)
    new = folder_of(tmp_path / "new", mixtral(seed=3))
    for file in ("config.json", "model.safetensors"):
        shutil.copy(new / file, folder / file)
    _, logits = traced_logits(folder, tmp_path)
    assert torch.equal(logits, traced_logits(new, tmp_path)[1])
    assert_read_as_transformers_does(folder, tmp_path)
    assert torch.equal(loaded(folder)[EMBEDDING], load_file(new / "model.safetensors")[EMBEDDING])


# ---- files that are no files


def loop(path):
    path.symlink_to(path.name)


def pipe(path):
    os.mkfifo(path)


def nowhere(path):
    path.symlink_to("no-such-file")


@pytest.mark.parametrize("make", [loop, pipe, nowhere, os.mkdir])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json", "a shard"])
def test_a_file_that_is_none_is_an_error_of_ours(make, name, tmp_path):
    folder = folder_of(tmp_path / "model", mixtral(), max_shard_size="100KB")
    name = shards_of(folder)[1].name if name == "a shard" else name
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    assert_refused(job_from(tmp_path, folder).run(1, "validate"), f"cannot read {folder / name}: ")
    if name != "config.json":
        with pytest.raises(conclave.CheckpointError, match=name):
            checkpoint = CheckpointFolder(folder)
            for tensor in checkpoint.names():
                checkpoint.slice_of(tensor)


INDEXES = {
    "a name of 300 letters": ({"weight_map": {"a": "x" * 300 + ".safetensors"}}, "File name too long"),
    "a folder above": ({"weight_map": {"a": "../model.safetensors"}}, "in the same folder"),
    "a number for a name": ({"weight_map": {"a": 3}}, "must be"),
    "no table": ({"metadata": {}}, "weight_map"),
    "a list": ([], "weight_map"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_names_no_files_is_an_error_of_ours(case, tmp_path):
    content, fact = INDEXES[case]
    folder = folder_of(tmp_path / "model", mixtral(), max_shard_size="100KB")
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    assert_refused(job_from(tmp_path, folder).run(1, "validate"), fact)
    with pytest.raises(conclave.CheckpointError, match=fact):
        checkpoint = CheckpointFolder(folder)
        checkpoint.slice_of(checkpoint.names()[0])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_without_a_bottom_is_an_error_of_ours(name, tmp_path):
    folder = folder_of(tmp_path / "model", mixtral(), max_shard_size="100KB")
    content = json.loads((folder / name).read_text())
    text = json.dumps({**content, "rope_parameters" if name == "config.json" else "weight_map": "HERE"})
    (folder / name).write_text(text.replace('"HERE"', '{"a":' * 100_000 + "1" + "}" * 100_000))
    assert_refused(job_from(tmp_path, folder).run(1, "validate"), name, "nested deeper than 127 levels")
    if name != "config.json":
        with pytest.raises(conclave.CheckpointError, match=name):
            CheckpointFolder(folder)

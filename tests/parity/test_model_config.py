"""The keys of a config.json, as Transformers reads them for a Mixtral.

Oracle: Transformers' own classes and code. For forms of the same key, the logits of `MixtralForCausalLM.from_pretrained` of the very folder; for the
question which keys there are, the source of what a Mixtral runs through: whatever it reads of a configuration.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from pathlib import Path

import pytest
import torch
import transformers
from mixtral import Case, make_batch, make_model, save_model
from ranks import run_ranks, succeed
from safetensors.torch import load_file, save_file
from small_job import MODEL, SmallJob
from transformers import GenerationConfig, MixtralConfig, MixtralForCausalLM, PreTrainedConfig

TOLERANCE = 1e-5  # of the largest logit, as in test_trace.py
SEQUENCE = 32

# What a Mixtral runs through from its config.json to its loss.
SOURCES = """configuration_utils modeling_rope_utils modeling_utils modeling_layers masking_utils cache_utils initialization utils.generic
    models.mixtral.configuration_mixtral models.mixtral.modeling_mixtral integrations.moe integrations.sdpa_attention integrations.flash_attention
    integrations.flex_attention integrations.heterogeneity.configuration_utils loss.loss_utils conversion_mapping core_model_loading
    models.auto.auto_factory models.auto.configuration_auto quantizers.auto""".split()
CONFIG = re.compile(r"(self\.|model\.|module\.)?(config|text_config|decoder_config|default_config)|self\.get_text_config\(.*\)")
LOOKS = {"getattr", "hasattr"}
# Arguments of from_pretrained, which that code passes about under the name of a config's attributes, and what classes are made of.
NOT_IN_A_FILE = {"adapter_kwargs", "config", "code_revision", "features_only", "is_heterogeneous", "num_channels", "out_features", "out_indices",
                 "trust_remote_code", "use_pretrained_backbone", "use_timm_backbone", "model_type"}


def keys_in(source: str, holders: re.Pattern[str]) -> set[str]:
    """Attributes, and names asked for by getattr and hasattr, of what matches `holders`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and holders.fullmatch(ast.unparse(node.value)):
            found.add(node.attr)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LOOKS and isinstance(node.args[1], ast.Constant):
            if holders.fullmatch(ast.unparse(node.args[0])):
                found.add(node.args[1].value)
    return found


def arguments_taken_by(function: object) -> set[str]:
    """Names that a function takes out of its `kwargs`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    return {node.args[0].value for node in calls if ast.unparse(node.func) in ("kwargs.pop", "kwargs.get") and isinstance(node.args[0], ast.Constant)}


def transformers_keys() -> set[str]:
    """Every key of a config.json that Transformers' code for a Mixtral looks at."""
    root = Path(transformers.__file__).parent
    keys = {field.name for field in dataclasses.fields(MixtralConfig)} | set(MixtralConfig.attribute_map)
    keys |= set(GenerationConfig._get_default_generation_params())
    for function in (PreTrainedConfig.__post_init__, PreTrainedConfig.convert_rope_params_to_dict):
        keys |= arguments_taken_by(function)
    for module in SOURCES:
        keys |= keys_in((root / (module.replace(".", "/") + ".py")).read_text(), CONFIG)
    for mixin in (PreTrainedConfig, *PreTrainedConfig.__mro__[1:-1]):
        if mixin.__module__.startswith("transformers.") and mixin.__name__ != "PushToHubMixin":
            keys |= keys_in(textwrap.dedent(inspect.getsource(mixin)), re.compile("self"))
    return {key for key in keys - NOT_IN_A_FILE if not callable(getattr(PreTrainedConfig, key, None))}


def unknown_keys(tmp_path: Path, keys: dict[str, object]) -> set[str]:
    """Those that `conclave validate` warns of."""
    job = SmallJob(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**keys, **MODEL}))
    ended = succeed(job.run(1, "validate", ["--quiet"]))
    warned = re.search(r"warning: .* has keys that neither .*: (.*)", ended.text)
    return set(warned[1].split(", ")) if warned else set()


def test_every_key_that_transformers_reads_is_read_refused_or_listed(tmp_path):
    keys = transformers_keys()
    # A guard of the test itself: keys of each kind are among those that were found.
    assert keys >= {"rope_scaling", "num_experts", "is_causal", "per_layer_config", "quantization_config", "transformers_weights", "layer_types",
                    "temperature", "attn_implementation", "original_max_position_embeddings"}
    assert len(keys) > 120
    assert unknown_keys(tmp_path, dict.fromkeys(keys)) == set()


def test_a_misspelt_key_is_told(tmp_path):
    assert unknown_keys(tmp_path, {"slidng_window": 4, "num_expert": 3, "use_cache": True}) == {"slidng_window", "num_expert"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder, with four heads and two for keys and values; without its rotary keys."""
    folder = tmp_path_factory.mktemp("model")
    case = Case("base", {"num_key_value_heads": 2}, batch=1, sequence=SEQUENCE)
    save_model(make_model(case), folder, "v4")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config))
    inputs, targets = make_batch(case)
    save_file({"input_ids": inputs, "labels": targets}, folder / "tokens.safetensors")
    return folder


DEFAULT = {"rope_type": "default"}
LINEAR = {"rope_type": "linear", "factor": 4.0}
# What a file says besides; which of its keys are left out; what is said of it when it is refused.
FORMS = [
    ({}, [], None),
    ({"rope_theta": 50.0}, [], None),
    ({"rope_theta": 50, "rope_parameters": None, "rope_scaling": None}, [], None),
    ({"rope_theta": 50.0, "rope_parameters": {"rope_theta": 5.0, **DEFAULT}}, [], None),
    ({"rope_theta": 50.0, "rope_parameters": DEFAULT}, [], None),
    ({"rope_theta": 50.0, "rope_parameters": {}}, [], None),
    ({"rope_theta": 50.0, "rope_scaling": DEFAULT}, [], None),
    ({"rope_theta": 50.0, "rope_scaling": {"type": "default", "rope_theta": 5.0}}, [], None),
    ({"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": DEFAULT}, [], None),
    ({"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": {}}, [], None),
    ({"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": False}, [], None),
    ({"rope_parameters": {"rope_theta": 5.0, "type": "linear", **DEFAULT}}, [], None),
    ({"rope_theta": 50.0, "rope_parameters": LINEAR}, [], None),
    ({"rope_theta": 50.0, "rope_parameters": {"type": "linear", "factor": 4.0}}, [], None),
    ({"rope_theta": 50.0, "rope_scaling": {"type": "linear", "factor": 4.0}}, [], None),
    ({"rope_theta": 50.0, "head_dim": 8, "rope_scaling": {**LINEAR, "rope_type": "yarn", "original_max_position_embeddings": 16}}, [], None),
    ({"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": LINEAR}, [], None),
    ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 4, "head_dim": 8}, [], "rope_type is \"dynamic\""),
    ({"is_causal": False}, [], "is_causal is false"),
    ({"num_experts": 8}, ["num_local_experts"], None),
    ({"num_experts": 8, "num_local_experts": 4}, [], None),
    ({"head_dim": None}, [], None),
    ({"hidden_act": "swish"}, [], None),
    ({"layer_types": ["full_attention"] * 2}, [], None),
    ({"sliding_window": 5, "layer_types": ["sliding_attention"] * 2}, [], None),
    ({"sliding_window": 5, "use_cache": False, "temperature": 0.5, "torch_dtype": "float32"}, [], None),
]


def form_of(model: Path, folder: Path, keys: dict[str, object], without: list[str]) -> Path:
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in {**config, **keys}.items() if key not in without}))
    (folder / "model.safetensors").symlink_to(model / "model.safetensors")
    return folder


@pytest.mark.parametrize("keys, without, refusal", FORMS, ids=[json.dumps(keys) for keys, _, _ in FORMS])
def test_a_form_of_the_file_is_read_as_transformers_reads_it_or_refused(keys, without, refusal, model, tmp_path):
    folder = form_of(model, tmp_path, keys, without)
    tokens = model / "tokens.safetensors"
    ended = run_ranks(1, ["trace", "--model", folder, "--tokens", tokens, "--out", tmp_path / "out.safetensors"])
    theirs = MixtralForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = theirs(load_file(tokens)["input_ids"]).logits
    if refusal is not None:
        assert ended.codes == [2] and refusal in ended.text and "config.json" in ended.text, ended.text
        plain = MixtralForCausalLM.from_pretrained(model, attn_implementation="eager").eval()
        with torch.no_grad():  # a refusal of what makes no difference would be unkind
            assert (plain(load_file(tokens)["input_ids"]).logits - expected).abs().max() > 100 * TOLERANCE * expected.abs().max()
        return
    succeed(ended)
    logits = load_file(tmp_path / "out.safetensors")["logits"]
    assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_absent_heads_of_keys_and_values_mean_eight(tmp_path):
    case = Case("eight heads", {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8}, batch=1, sequence=SEQUENCE)
    source = tmp_path / "source"
    save_model(make_model(case), source, "v4")
    inputs, targets = make_batch(case)
    save_file({"input_ids": inputs, "labels": targets}, source / "tokens.safetensors")
    (tmp_path / "form").mkdir()
    folder = form_of(source, tmp_path / "form", {}, ["num_key_value_heads"])
    assert MixtralConfig.from_pretrained(folder).num_key_value_heads == 8
    succeed(run_ranks(1, ["trace", "--model", folder, "--tokens", source / "tokens.safetensors", "--out", tmp_path / "out.safetensors"]))
    with torch.no_grad():
        expected = MixtralForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()(inputs).logits
    assert (load_file(tmp_path / "out.safetensors")["logits"] - expected).abs().max() <= TOLERANCE * expected.abs().max()

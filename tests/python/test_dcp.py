"""`conclave ckpt to-dcp` and `from-dcp`: PyTorch's distributed checkpoints (DCP).

Oracle: torch.distributed.checkpoint itself, on the state dictionaries of Transformers' Mixtral and PyTorch's AdamW. No tolerance: bits are copied.
"""

import json
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from small_job import MODEL, SmallJob
from test_ckpt import apart, assert_same_bits, ckpt, ckpt_json, tensors_in
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys
from transformers import MixtralConfig, MixtralForCausalLM

SEED = 7
ADAMW = {"optimizer.lr": 0.004, "optimizer.beta1": 0.8, "optimizer.beta2": 0.9, "optimizer.eps": 1e-6, "optimizer.weight_decay": 0.3,
         "schedule.kind": "constant"}


@pytest.fixture(autouse=True)
def one_process():
    with warnings.catch_warnings():  # PyTorch says that it runs without ranks
        warnings.simplefilter("ignore")
        yield


def mixtral(tied=False, dtype=torch.float32, seed=SEED):
    torch.manual_seed(seed)
    keys = {key: value for key, value in MODEL.items() if key != "model_type"}
    return MixtralForCausalLM(MixtralConfig(**{**keys, "tie_word_embeddings": tied})).to(dtype)


def adamw(model, groups=2):
    if groups == 1:
        return torch.optim.AdamW(model.parameters(), lr=0.001)
    decay = [parameter for name, parameter in model.named_parameters() if "norm" not in name]
    norms = [parameter for name, parameter in model.named_parameters() if "norm" in name]
    return torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}], lr=0.001)


def trained(steps, **keys):
    """Model and optimizer after some steps in PyTorch."""
    model = mixtral(**keys)
    optimizer = adamw(model)
    for _ in range(steps):
        tokens = torch.randint(0, MODEL["vocab_size"], (2, 8))
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def state_of(model, optimizer):
    return {"model": states.get_model_state_dict(model), "optimizer": states.get_optimizer_state_dict(model, optimizer)}


def nested(folder):
    """What PyTorch's own tool makes of a folder."""
    dcp_to_torch_save(folder, folder.with_suffix(".pt"))
    return torch.load(folder.with_suffix(".pt"), weights_only=False)


def assert_equal(actual, expected, path=()):
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for key, value in expected.items():
            assert_equal(actual[key], value, (*path, key))
    elif isinstance(expected, list):
        assert len(actual) == len(expected), path
        for i, value in enumerate(expected):
            assert_equal(actual[i], value, (*path, i))
    elif isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype and torch.equal(actual, expected), path
    else:
        assert type(actual) is type(expected) and actual == expected, path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    job = SmallJob(tmp_path_factory.mktemp("run"), {"run.steps": 3, "checkpoint.every": 3, "checkpoint.export_every": 3, **ADAMW})
    job.must_run()
    return job


@pytest.fixture(scope="module")
def tied_run(tmp_path_factory):
    job = SmallJob(tmp_path_factory.mktemp("tied"), {"run.steps": 2, "checkpoint.every": 2})
    (job.folder / "config.json").write_text(json.dumps({**MODEL, "tie_word_embeddings": True}))
    job.must_run()
    return job


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "dcp"
    ckpt("to-dcp", run.output, folder)
    return folder


# ---- what to-dcp writes


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_folder_is_described_as_pytorch_describes_its_own(tied, run, tied_run, tmp_path):
    ckpt("to-dcp", (tied_run if tied else run).output, tmp_path / "ours")
    dcp.save(state_of(*trained(1, tied=tied)), checkpoint_id=tmp_path / "pytorch", no_dist=True)
    ours, pytorch = (dcp.FileSystemReader(tmp_path / name).read_metadata() for name in ("ours", "pytorch"))
    assert ours.state_dict_metadata.pop("conclave.state") is not None and ours.planner_data.pop("conclave.state") == ("conclave", "state")
    assert ours.state_dict_metadata == pytorch.state_dict_metadata
    assert ours.planner_data == pytorch.planner_data


def test_dcp_to_torch_save_gives_the_nested_state(run, written):
    state = nested(written)
    assert state.keys() == {"model", "optimizer", "conclave"}
    assert_same_bits(apart(state["model"]), tensors_in(run.output / "export/step-00000003"))
    model = mixtral()
    optimizer = adamw(model)
    states.set_model_state_dict(model, state["model"])
    states.set_optimizer_state_dict(model, optimizer, state["optimizer"])
    assert {float(each["step"]) for each in optimizer.state.values()} == {3.0} and len(optimizer.state) == len(list(model.parameters()))
    assert all(each["exp_avg"].abs().sum() > 0 for each in optimizer.state.values())
    keys = {name.split(".")[1]: value for name, value in ADAMW.items()}
    for group, weight_decay in zip(optimizer.param_groups, [keys["weight_decay"], 0.0], strict=True):
        assert (group["lr"], group["betas"], group["eps"]) == (keys["lr"], (keys["beta1"], keys["beta2"]), keys["eps"])
        assert group["weight_decay"] == weight_decay


@pytest.mark.parametrize("part", ["model", "optimizer", "optimizer.param_groups"])
def test_a_part_of_it_loads_alone(part, written):
    state = nested(written)
    loaded = _load_state_dict_from_keys(part, checkpoint_id=written)
    for key in part.split("."):
        assert loaded.keys() == {key}
        loaded, state = loaded[key], state[key]
    assert_equal(loaded, state)


@pytest.mark.parametrize("groups", [1, 2])
def test_it_loads_into_a_model_and_an_optimizer_with_any_groups(groups, written):
    model = mixtral()
    optimizer = adamw(model, groups)
    state = state_of(model, optimizer)
    dcp.load(state, checkpoint_id=written, no_dist=True)
    states.set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    expected = nested(written)
    assert_equal(states.get_model_state_dict(model), expected["model"])
    assert_equal(states.get_optimizer_state_dict(model, optimizer)["state"], expected["optimizer"]["state"])


def test_a_tied_model_loads_by_its_state_dict(tied_run, tmp_path):
    ckpt("to-dcp", tied_run.output, tmp_path / "dcp")
    model = mixtral(tied=True)
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert torch.equal(state["model"]["lm_head.weight"], state["model"]["model.embed_tokens.weight"])
    ckpt("from-dcp", tmp_path / "dcp", tmp_path / "back")
    assert {each["result"] for each in ckpt_json("diff", tied_run.output, tmp_path / "back")} == {"equal"}


def test_it_comes_back(run, written, tmp_path):
    checkpoint = run.output / "checkpoints/step-00000003"
    ckpt("from-dcp", written, tmp_path / "back")
    assert {each["result"] for each in ckpt_json("diff", checkpoint, tmp_path / "back")} == {"equal"}
    shown, back = (ckpt_json("show", folder) for folder in (checkpoint, tmp_path / "back"))
    assert {key for key in shown if shown[key] != back[key]} == {"path", "files"}


# ---- what PyTorch has written

FORMS = {
    "model-and-optimizer": lambda model, optimizer: state_of(model, optimizer),
    "application": lambda model, optimizer: {"app": {"model": states.get_model_state_dict(model),
                                                     "optim": states.get_optimizer_state_dict(model, optimizer)}, "epoch": 4},
    "flat-optimizer": lambda model, optimizer: {**model.state_dict(), "optimizer": states.get_optimizer_state_dict(
        model, optimizer, options=states.StateDictOptions(flatten_optimizer_state_dict=True))},
    "model-alone": lambda model, optimizer: {"model": model.state_dict()},
    "model-at-the-top": lambda model, optimizer: model.state_dict(),
    "experts-apart": lambda model, optimizer: {"model": apart(model.state_dict())},
}


def config_file(folder, **changes):
    (folder / "config.json").write_text(json.dumps({**MODEL, **changes}))
    return folder / "config.json"


@pytest.mark.parametrize("form, tied, dtype", [
    pytest.param(form, tied, dtype, id=f"{form}-{name}", marks=[] if is_fast else pytest.mark.slow)
    for number, form in enumerate(FORMS)
    for kind, (name, tied, dtype) in enumerate([("fp32", False, torch.float32), ("tied", True, torch.float32), ("bf16", False, torch.bfloat16)])
    for is_fast in [number % 3 == kind]])  # each form and each kind is in the fast set, not each pair
def test_what_pytorch_saved_becomes_a_checkpoint_bit_by_bit(form, tied, dtype, tmp_path):
    model, optimizer = trained(2, tied=tied, dtype=dtype)
    state = FORMS[form](model, optimizer)
    dcp.save(state, checkpoint_id=tmp_path / "pytorch", no_dist=True)
    has_moments = "optim" in str(state.keys()) or "app" in state
    ckpt("from-dcp", tmp_path / "pytorch", tmp_path / "checkpoint", "--config", config_file(tmp_path, tie_word_embeddings=tied))
    assert ckpt_json("verify", tmp_path / "checkpoint")["intact"]
    assert ckpt_json("show", tmp_path / "checkpoint")["step"] == (2 if has_moments else 0)
    ckpt("to-dcp", tmp_path / "checkpoint", tmp_path / "again")
    again = nested(tmp_path / "again")
    assert_equal(again["model"], dict(states.get_model_state_dict(model)))
    expected = states.get_optimizer_state_dict(model, optimizer)["state"]
    if has_moments:
        assert_equal(again["optimizer"]["state"], expected)
    else:
        assert all(not each["exp_avg"].any() and not each["exp_avg_sq"].any() and each["step"] == 0 for each in again["optimizer"]["state"].values())


def test_a_run_goes_on_with_what_pytorch_saved(tmp_path):
    model, optimizer = trained(2)
    dcp.save(state_of(model, optimizer), checkpoint_id=tmp_path / "pytorch", no_dist=True)
    job = SmallJob(tmp_path, {"run.steps": 4})
    ckpt("from-dcp", tmp_path / "pytorch", job.output / "checkpoints/step-00000002", "--config", config_file(tmp_path))
    job.must_run()
    assert [record["step"] for record in job.metrics()] == [3, 4]


def test_what_is_beside_the_model_is_named_and_left_out(tmp_path):
    dcp.save({"model": mixtral().state_dict(), "queue": torch.ones(3), "loss": torch.ones(1)}, checkpoint_id=tmp_path / "pytorch", no_dist=True)
    import subprocess

    from small_job import PROGRAM
    done = subprocess.run([PROGRAM, "ckpt", "from-dcp", tmp_path / "pytorch", tmp_path / "checkpoint", "--config", config_file(tmp_path)],
                          capture_output=True, text=True, check=True)
    assert "2 tensors are not the model's or AdamW's and are left out: loss, queue" in done.stderr and "no moments of AdamW" in done.stderr


def other_step(state):
    state["optimizer"]["state"]["lm_head.weight"]["step"] += 1


def no_steps(state):
    for each in state["optimizer"]["state"].values():
        del each["step"]


def copy_of_the_model(state):
    state["ema"] = dict(state["model"])


REFUSALS = {
    "another-shape": (lambda state: state["model"].update({"lm_head.weight": torch.ones(2, 2)}), ["lm_head.weight", "[2, 2]"]),
    "integers": (lambda state: state["model"].update({"lm_head.weight": state["model"]["lm_head.weight"].to(torch.uint8)}), ["lm_head.weight", "U8"]),
    "a-tensor-is-missing": (lambda state: state["model"].pop("lm_head.weight"), ['no tensor "model.lm_head.weight"']),
    "no-model": (lambda state: state.update(model={"weight": torch.ones(2)}), ["holds no model of Transformers"]),
    "two-models": (copy_of_the_model, ["more than one model", "ema.model.norm.weight"]),
    "steps-differ": (other_step, ["lm_head.weight.step", "is 3", "is 2"]),
    "no-steps": (no_steps, ["no tensor", ".step"]),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_is_no_checkpoint_of_the_model_is_refused(what, tmp_path):
    state = state_of(*trained(2))
    spoil, facts = REFUSALS[what]
    spoil(state)
    dcp.save(state, checkpoint_id=tmp_path / "pytorch", no_dist=True)
    said = ckpt("from-dcp", tmp_path / "pytorch", tmp_path / "back", "--config", config_file(tmp_path), code=2)
    assert all(fact in said for fact in facts), said
    assert "Traceback" not in said and not (tmp_path / "back").exists()


def test_the_config_is_asked_for_once(written, tmp_path):
    assert "no .metadata" in ckpt("from-dcp", tmp_path, tmp_path / "back", code=2)
    dcp.save({"model": mixtral().state_dict()}, checkpoint_id=tmp_path / "pytorch", no_dist=True)
    assert "--config" in ckpt("from-dcp", tmp_path / "pytorch", tmp_path / "back", code=2)
    assert "Leave --config out" in ckpt("from-dcp", written, tmp_path / "back", "--config", config_file(tmp_path), code=2)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("what", ["a-file-is-missing", "metadata-is-cut", "metadata-is-text"])
def test_a_damaged_folder_is_refused(what, tmp_path):
    dcp.save({"model": mixtral().state_dict()}, checkpoint_id=tmp_path / "pytorch", no_dist=True)
    metadata = tmp_path / "pytorch/.metadata"
    if what == "a-file-is-missing":
        (tmp_path / "pytorch/__0_0.distcp").unlink()
    else:
        metadata.write_bytes(metadata.read_bytes()[:99] if what == "metadata-is-cut" else b"step 3")
    said = ckpt("from-dcp", tmp_path / "pytorch", tmp_path / "back", "--config", config_file(tmp_path), code=2)
    assert ("lacks __0_0.distcp" if what == "a-file-is-missing" else ".metadata cannot be read") in said
    assert "Traceback" not in said and not (tmp_path / "back").exists()

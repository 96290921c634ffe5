"""Adapters (the section `adapter` of a job) against Transformers with PEFT: gradients, ten steps, folders in both directions, merging.

Oracle: PEFT 0.21 on the family's class of Transformers, in fp32 and one process, with the batch of all ranks. Tolerance: 1e-5 of the tensor's largest
value, fp32 sums in another order (test_families.py), and of each step's loss.
"""

from __future__ import annotations

import copy
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from family_training import DECAY, RATE, ROWS, SEED, SEQUENCE, STEP_TOLERANCE, STEPS, tokens_of, train_with_transformers
from grid import Grid
from peft import LoraConfig, PeftModel, get_peft_model
from ranks import program, run_ranks, succeed
from safetensors.torch import load_file, save_file
from small_job import SmallJob, write_tokens
from test_families import TOLERANCE, numbers
from tiny_families import Case, balancing_loss, lm_loss, make_batch, make_model, on_disk
from transformers import AutoModelForCausalLM

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
GRIDS = [Grid(1), Grid(2, expert=2)]


@dataclass(frozen=True)
class Kind:
    """An adapter as PEFT is asked for it, and as a job is."""

    family: str
    peft: LoraConfig
    job: dict

    def __str__(self) -> str:
        return f"{self.family}, {self.job}"


def both(family: str, **job) -> Kind:
    """Of attention and experts."""
    peft = LoraConfig(r=4, lora_alpha=6, target_modules=ATTENTION, target_parameters=EXPERTS)
    return Kind(family, peft, {"adapter.rank": 4, "adapter.alpha": 6, **job})


KINDS = [
    both("mixtral"), both("olmoe"), both("qwen3_moe"),
    Kind("gpt_oss", LoraConfig(r=3, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "o_proj"], target_parameters=EXPERTS),
         {"adapter.rank": 3, "adapter.alpha": 8, "adapter.use_rslora": True, "adapter.targets": ["q_proj", "o_proj"]}),
    Kind("deepseek_v3", LoraConfig(r=4, lora_alpha=8, target_modules=["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
                                   target_parameters=EXPERTS), {"adapter.rank": 4}),
    Kind("mixtral", LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj"], target_parameters=["mlp.gate.weight"]),
         {"adapter.rank": 4, "adapter.targets": "v_proj", "adapter.experts": False, "adapter.router": "adapted"}),
    Kind("olmoe", LoraConfig(r=4, lora_alpha=8, target_modules=[], target_parameters=EXPERTS, modules_to_save=["gate"]),
         {"adapter.rank": 4, "adapter.targets": [], "adapter.router": "trained"}),
    Kind("llama", LoraConfig(r=4, lora_alpha=8, target_modules=[*ATTENTION, "gate_proj", "up_proj", "down_proj"]),
         {"adapter.rank": 4, "adapter.targets": ["attention", "mlp"]}),
    Kind("qwen3", LoraConfig(r=4, lora_alpha=8, target_modules=["up_proj"]), {"adapter.rank": 4, "adapter.targets": ["up_proj"]}),
]


def adapted(kind: Kind, base) -> PeftModel:
    """With the matrices B, which PEFT starts at 0, drawn: then A gets gradients at once."""
    torch.manual_seed(3)
    model = get_peft_model(copy.deepcopy(base), copy.deepcopy(kind.peft)).eval()
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=random))
    return model


def name_in_file(name: str) -> str:
    return name.replace(".default", "").replace(".modules_to_save", "")


def trained_parameters(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    return {name_in_file(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@dataclass
class Prepared:
    kind: Kind
    folder: Path  # initial: the model; adapter: PEFT's folder
    base: torch.nn.Module
    model: PeftModel

    def job(self, folder: Path, keys: dict | None = None) -> SmallJob:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text((self.folder / "initial" / "config.json").read_text())
        write_tokens(folder / "tokens", [tokens_of(self.base.config.vocab_size).numpy()])
        return SmallJob(folder, {
            "run.steps": STEPS, "run.seed": SEED, "model.init_from": str(self.folder / "initial"), "data.sequence_length": SEQUENCE,
            "data.micro_batch_size": ROWS, "data.global_batch_size": ROWS, "optimizer.lr": RATE, "optimizer.weight_decay": DECAY,
            "optimizer.grad_clip": 1.0, "checkpoint.every": STEPS // 2, "adapter.init_from": str(self.folder / "adapter"), **self.kind.job, **(keys or {})})

    @property
    def has_experts(self) -> bool:
        return "num_experts_per_tok" in self.base.config.to_dict()

    def two_ranks(self) -> dict:
        return {"data.micro_batch_size": ROWS // 2, "parallel.expert_parallel_degree": 2 if self.has_experts else 1}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    made: dict[str, Prepared] = {}

    def prepare(kind: Kind) -> Prepared:
        if str(kind) not in made:
            folder = tmp_path_factory.mktemp("lora")
            base = make_model(Case(kind.family))
            base.save_pretrained(folder / "initial")
            model = adapted(kind, base)
            model.save_pretrained(folder / "adapter")
            made[str(kind)] = Prepared(kind, folder, base, model)
        return made[str(kind)]

    return prepare


def trace(ready: Prepared, adapter: Path, grid: Grid, out: Path) -> dict[str, torch.Tensor]:
    inputs, targets = make_batch(Case(ready.kind.family), ready.base)
    tokens = out.with_suffix(".tokens.safetensors")
    save_file({"input_ids": inputs, "labels": targets}, tokens)
    keys = {**ready.kind.job, "adapter.init_from": str(adapter), "parallel.expert_parallel_degree": grid.expert}
    sets = [f"--set={key}={json.dumps(value)}" for key, value in keys.items()]
    succeed(run_ranks(grid.world, ["trace", "--model", ready.folder / "initial", "--tokens", tokens, "--out", out, "--grads", *sets]))
    return load_file(out)


def compare_trace(ready: Prepared, model: PeftModel, adapter: Path, grid: Grid, out: Path) -> None:
    """Logits, loss, and the gradients of all that is trained and of nothing else."""
    inputs, targets = make_batch(Case(ready.kind.family), ready.base)
    model.zero_grad()
    result = model(input_ids=inputs)
    (lm_loss(result.logits, targets) + balancing_loss(model, result)).backward()
    expected = {f"grad.{name}": parameter.grad for name, parameter in trained_parameters(model).items()}
    traced = trace(ready, adapter, grid, out)
    assert {name for name in traced if name.startswith("grad.")} == expected.keys()
    for name, tensor in {**expected, "logits": result.logits.detach()}.items():
        assert traced[name].shape == tensor.shape, name
        assert (traced[name] - tensor).abs().max() <= TOLERANCE * tensor.abs().max(), f"{ready.kind} on {grid}: {name}"


def without_shards(family: str) -> list[Grid]:
    return GRIDS if family not in ("llama", "qwen3") else [Grid(1), Grid(2)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_equal_those_of_peft(kind, prepared, tmp_path):
    ready = prepared(kind)
    for grid in without_shards(kind.family):
        compare_trace(ready, ready.model, ready.folder / "adapter", grid, tmp_path / f"{grid.world}.safetensors")


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_ten_steps_equal_peft_and_the_folder_is_pefts_own(kind, prepared, tmp_path):
    """At one rank, and at two with expert degree 2; then gradients once more, at the adapter that was trained."""
    ready = prepared(kind)
    model = copy.deepcopy(ready.model)
    steps = train_with_transformers(model, tokens_of(ready.base.config.vocab_size))
    for ranks, keys in ((1, {}), (2, ready.two_ranks())):
        job = ready.job(tmp_path / str(ranks), keys)
        job.must_run(ranks)
        for step, (record, expected) in enumerate(zip(job.metrics(), steps, strict=True)):
            assert record["loss"] == pytest.approx(expected[0], rel=1e-5, abs=0), f"step {step + 1} on {ranks} ranks"
            assert record["grad_norm"] == pytest.approx(expected[1], rel=STEP_TOLERANCE, abs=0), f"step {step + 1} on {ranks} ranks"
    folder = job.must_export(tmp_path / "exported")
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(each / "adapter_model.safetensors") for each in (folder, tmp_path / "theirs"))
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: tensor.shape for name, tensor in theirs.items()}
    loaded = PeftModel.from_pretrained(copy.deepcopy(ready.base), folder, is_trainable=True).eval()
    compare_trace(ready, loaded, folder, GRIDS[1], tmp_path / "trained.safetensors")


@pytest.mark.parametrize("kind", [KINDS[1], KINDS[3], KINDS[5], KINDS[6], KINDS[7]], ids=str)
def test_merging_equals_pefts_merge(kind, prepared, tmp_path):
    """Of PEFT's folder, and of a run's checkpoint onto the same model."""
    ready = prepared(kind)
    merged = copy.deepcopy(ready.model).merge_and_unload()
    merged.save_pretrained(tmp_path / "theirs")
    expected = on_disk(tmp_path / "theirs")
    job = ready.job(tmp_path / "job", {"run.steps": 1, "optimizer.lr": 1e-12, "schedule.min_lr": 0, "checkpoint.every": 1})
    job.must_run(1)
    for name, arguments in (("folder", [ready.folder / "adapter", tmp_path / "folder", "--base", ready.folder / "initial"]),
                            ("run", [job.output, tmp_path / "run"])):
        subprocess.run([program(), "ckpt", "merge", *map(str, arguments)], check=True, capture_output=True)
        ours = on_disk(tmp_path / name)
        assert ours.keys() == expected.keys()
        for key, tensor in expected.items():
            assert (ours[key] - tensor).abs().max() <= 1e-6 * tensor.abs().max(), f"{name}: {key}"
    inputs, _ = make_batch(Case(kind.family), ready.base)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run", attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        logits, right = loaded(inputs).logits, ready.model(inputs).logits
    assert (logits - right).abs().max() <= TOLERANCE * right.abs().max()


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory) -> tuple[Prepared, SmallJob]:
    ready = prepared(KINDS[0])
    job = ready.job(tmp_path_factory.mktemp("trained"), ready.two_ranks())
    job.must_run(2)
    return ready, job


def test_a_checkpoint_holds_the_adapter_alone(trained):
    _, job = trained
    manifest = json.loads(next((job.output / "checkpoints").glob("step-*/manifest.json")).read_text())
    names = [name.split("/", 1) for name in manifest["content"]["tensors"]]
    assert {kind for kind, _ in names} == {"parameter", "exp_avg", "exp_avg_sq"}
    assert all(name.endswith((".lora_a", ".lora_b")) for _, name in names) and len(names) == 3 * 2 * 2 * (4 + 2)


def test_resume_layouts_and_recomputation(trained, tmp_path):
    """Resumed to the bit; at another layout to rounding; recomputed and offloaded to the bit; with experts lent to rounding."""
    _, job = trained
    middle = str(job.output / "checkpoints" / f"step-{STEPS // 2:08d}")
    resumed = job.with_keys({"run.output_dir": str(tmp_path / "resumed"), "checkpoint.resume": middle})
    resumed.must_run(2)
    assert numbers(resumed.metrics()) == numbers(job.metrics())[STEPS // 2 :]
    left, right = (load_file(each.must_export(tmp_path / f"export-{number}") / "adapter_model.safetensors") for number, each in enumerate((resumed, job)))
    assert all(torch.equal(left[name], right[name]) for name in right)
    full = {"memory.activation_checkpointing": "full", "memory.activation_offloading": True, "memory.activation_loading_horizon": 1}
    for number, keys in enumerate([{"memory.activation_checkpointing": "selective"}, full]):
        other = job.with_keys({"run.output_dir": str(tmp_path / f"bits-{number}"), **keys})
        other.must_run(2)
        assert numbers(other.metrics()) == numbers(job.metrics()), keys
    lent = {"moe.overload": "spill", "moe.spill_threshold": 1.01, "moe.spill_least_rows": 1}
    for number, (ranks, keys) in enumerate([(1, {"parallel.expert_parallel_degree": 1, "data.micro_batch_size": ROWS}), (2, lent),
                                            (2, {"parallel.expert_parallel_degree": 1, "parallel.hybrid_shard_degree": 1})]):
        other = job.with_keys({"run.output_dir": str(tmp_path / f"layout-{number}"), "checkpoint.resume": middle, **keys})
        other.must_run(ranks)
        for mine, theirs in zip(numbers(other.metrics()), numbers(job.metrics())[STEPS // 2 :], strict=True):
            assert mine == pytest.approx(theirs, rel=STEP_TOLERANCE, abs=0), keys


def test_the_model_must_be_the_one_that_the_adapter_was_trained_beside(trained, tmp_path):
    ready, job = trained
    other = copy.deepcopy(ready.base)
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.add_(0.01)
    other.save_pretrained(tmp_path / "other")
    ended = job.with_keys({"model.init_from": str(tmp_path / "other"), "run.steps": STEPS + 1}).run(2)
    assert set(ended.codes) == {2} and "fingerprint of the weights" in ended.text, ended.text


def test_dropout_is_the_same_on_every_layout_and_after_a_resume(prepared, tmp_path):
    """And dropped elements are what the rate says: without dropout the curve is another."""
    ready = prepared(KINDS[7])
    keys = {"adapter.dropout": 0.25, "optimizer.lr": 1e-2}
    job = ready.job(tmp_path / "one", keys)
    job.must_run(1)
    for name, ranks, more in (("two", 2, {"data.micro_batch_size": ROWS // 2}), ("micro-steps", 1, {"data.micro_batch_size": ROWS // 4}),
                              ("full", 1, {"memory.activation_checkpointing": "full"})):
        other = job.with_keys({"run.output_dir": str(tmp_path / name), **more})
        other.must_run(ranks)
        for mine, theirs in zip(numbers(other.metrics()), numbers(job.metrics()), strict=True):
            assert mine == pytest.approx(theirs, rel=STEP_TOLERANCE, abs=0), name
    resumed = job.with_keys({"run.output_dir": str(tmp_path / "resumed"), "checkpoint.resume": str(job.output / "checkpoints" / f"step-{STEPS // 2:08d}")})
    resumed.must_run(1)
    assert numbers(resumed.metrics()) == numbers(job.metrics())[STEPS // 2 :]
    plain = job.with_keys({"run.output_dir": str(tmp_path / "plain"), "adapter.dropout": 0.0})
    plain.must_run(1)
    assert abs(plain.metrics()[0]["loss"] / job.metrics()[0]["loss"] - 1) > 1e-4


def test_a_new_adapter_begins_as_pefts(prepared, tmp_path):
    """B is zero, so the first loss is the model's own; A is uniform within 1 / sqrt(inputs), and the same on every layout."""
    ready = prepared(KINDS[0])
    losses, exported = [], []
    for ranks, keys in ((1, {}), (2, ready.two_ranks())):
        job = ready.job(tmp_path / str(ranks), {**keys, "run.steps": 1, "optimizer.lr": 1e-12, "schedule.min_lr": 0, "adapter.init_from": None,
                                                "checkpoint.every": 1, "checkpoint.export_every": 1})
        job.must_run(ranks)
        losses.append(job.metrics()[0]["loss"])
        exported.append(load_file(job.output / "export" / "step-00000001" / "adapter_model.safetensors"))
    plain = ready.job(tmp_path / "plain", {"run.steps": 1, "adapter.init_from": None, "adapter.rank": 0, "adapter.alpha": None})
    plain.must_run(1)
    assert losses == pytest.approx([plain.metrics()[0]["loss"]] * 2, rel=1e-6)
    for name, tensor in exported[0].items():
        assert (exported[1][name] - tensor).abs().max() < 1e-8, name
        bound = tensor.shape[1] ** -0.5
        if "lora_A" in name:
            assert 0.9 * bound < tensor.abs().max() < bound and tensor.std() == pytest.approx(bound / 3**0.5, rel=0.15), name
        else:
            assert tensor.abs().max() < 1e-8, name


REFUSED = [
    ({"adapter.rank": 0}, "there is no adapter that it could be of"),
    ({"adapter.use_dora": True}, "DoRA's magnitudes"),
    ({"adapter.targets": ["mlp"]}, "in a model with experts PEFT takes it for the experts' matrices"),
    ({"adapter.targets": ["q_porj"]}, "q_porj, which is no dense layer of the model"),
    ({"adapter.dropout": 0.1}, "adapters of experts and of the router have none"),
    ({"adapter.rank": 8}, "has 4"),
    ({"adapter.targets": ["q_proj"]}, "adapter.targets is"),
    ({"train.freeze": ["lm_head.weight"]}, "beside an adapter all is frozen"),
    ({"moe.moe_load_balancing": "bias"}, "no place in an adapter's folder"),
    ({"adapter.targets": [], "adapter.experts": False}, "nothing would be trained"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED, ids=str)
def test_refusals(keys, message, prepared, tmp_path):
    job = prepared(KINDS[0]).job(tmp_path, keys)
    for command in ("validate", "train"):
        ended = job.run(1, command)
        assert set(ended.codes) == {2} and message in ended.text and "Traceback" not in ended.text, ended.text
    assert not (job.output / "metrics.jsonl").exists()


@pytest.mark.parametrize(("config", "message"), [
    ({"use_dora": True}, "use_dora is true"), ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"), ({"peft_type": "IA3"}, "peft_type is"),
    ({"init_lora_weights": "pissa"}, "changes the model itself"), ({"target_modules": ["q_proj", "lm_head"]}, "target_modules has lm_head"),
    ({"bias": "all"}, "bias is"), ({"modules_to_save": ["lm_head"]}, "modules_to_save has lm_head"),
])
def test_folders_that_are_refused(config, message, prepared, tmp_path):
    ready = prepared(KINDS[0])
    folder = tmp_path / "adapter"
    folder.mkdir()
    stored = json.loads((ready.folder / "adapter" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**stored, **config}))
    (folder / "adapter_model.safetensors").write_bytes((ready.folder / "adapter" / "adapter_model.safetensors").read_bytes())
    ended = ready.job(tmp_path / "job", {"adapter.init_from": str(folder)}).run(1)
    assert set(ended.codes) == {2} and message in ended.text and str(folder) in ended.text, ended.text

"""The program's own checkpoints from a script: a run goes on at any layout as if it had not stopped, `conclave ckpt` and `conclave train` understand them,
damage is passed over, the oldest are removed.

Oracle: the run that was not stopped, bit for bit on the same layout, within 1e-5 on another; Transformers for an export; `conclave ckpt`.
"""

import json
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from compared_steps import error_of, optimizer_of, whole
from small_job import SmallJob, random_documents, write_tokens
from tiny_models import batches, tiny_model
from torch_ranks import run_torch_ranks
from transformers import AutoModelForCausalLM

import conclave
from conclave.job import run_program

SEED = 5
BALANCING = {"mixtral": conclave.MoEConfig(moe_load_balancing="bias", bias_update_rate=0.01)}
FAMILIES = ("mixtral", "qwen3_moe")  # the first has a selection bias of the rule, the second dense layers
# Those whose checkpoints have the program's names: others keep their own.
OF_THE_PROGRAM = ("mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "deepseek_v2", "deepseek_v3", "glm4_moe")


def shared_folder() -> Path:
    shared = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    return Path(shared[0])


def start(family: str, degree: int, sharded: bool, on_meta: bool = False):
    conclave.init({"expert_parallel_degree": degree})
    if on_meta:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(tiny_model(family).config, attn_implementation="eager").train()
    else:
        model = tiny_model(family)
    conclave.transform(model, BALANCING.get(family, conclave.MoEConfig()))
    if sharded:
        conclave.fully_shard(model)
    return model, optimizer_of(conclave.parameter_groups(model)) if not on_meta else None


def train(model, optimizer, first: int, last: int, sharded: bool, save=None) -> list[float]:
    losses = []
    for step, tokens in enumerate(batches(6, dist.get_world_size(), seed=SEED)[first:last], start=first + 1):
        own = tokens[dist.get_rank()]
        loss = model(input_ids=own, labels=own).loss
        loss.backward()
        if not sharded:
            conclave.synchronize_gradients(model)
        conclave.clip_grad_norm_(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if save is not None:
            save(step)
    return losses


def goes_on() -> None:
    ranks = dist.get_world_size()
    for family in FAMILIES:
        folder = shared_folder()
        model, optimizer = start(family, 2, True)
        losses = train(model, optimizer, 0, 6, True,
                       lambda step: step % 2 == 0 and conclave.save_checkpoint(model, optimizer, folder, step, content={"epoch": step, "name": "é"},
                                                                               samples=step * ranks * 2, tokens=step * ranks * 24, asynchronous=step != 6))
        conclave.finish_saves()
        names = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
        assert names == ["step-00000004", "step-00000006"], "the newest two are kept"
        for degree, sharded, tolerance in ((2, True, 0.0), (1, False, 1e-5), (ranks, False, 1e-5), (1, True, 1e-5)):
            other, its_optimizer = start(family, degree, sharded)
            with torch.no_grad():
                for parameter in other.parameters():
                    parameter.zero_()
            loaded = conclave.load_checkpoint(other, its_optimizer, folder / "checkpoints/step-00000004")
            assert (loaded["step"], loaded["content"], loaded["samples"]) == (4, {"epoch": 4, "name": "é"}, 8 * ranks)
            again = train(other, its_optimizer, 4, 6, sharded)
            what = f"{family}, {ranks} ranks, degree {degree}, sharded {sharded}"
            assert again == losses[4:] if tolerance == 0 else again == pytest.approx(losses[4:], rel=tolerance), what
            for name, parameter in other.named_parameters():
                error = error_of(whole(parameter.detach()), whole(model.get_parameter(name).detach()))
                assert error <= tolerance, f"{what}: {name} differs by {error:.1e}"
            for (name, left), right in zip(other.named_buffers(), model.buffers(), strict=True):
                assert torch.equal(left, right), f"{what}: {name}"
        empty, _ = start(family, 2, True, on_meta=True)
        assert conclave.load_checkpoint(empty, None, folder)["step"] == 6
        for name, parameter in empty.named_parameters():
            assert torch.equal(whole(parameter.detach()), whole(model.get_parameter(name).detach())), f"{family} from the meta device: {name}"
        if dist.get_rank() == 0:
            check_program(family, folder, model.config)
        conclave.save_pretrained(model, folder / "model")
        if dist.get_rank() == 0:
            check_export(folder)
        dist.barrier()
        check_damage(family, folder)


def check_program(family: str, folder: Path, config) -> None:
    """`conclave ckpt` works on them, and they can be exported."""
    newest = folder / "checkpoints/step-00000006"
    listed = json.loads(run_program(["ckpt", "list", folder, "--json"]))
    assert len(json.dumps(listed)) > 10 and "step-00000006" in json.dumps(listed)
    run_program(["ckpt", "verify", newest])
    shown = json.loads(run_program(["ckpt", "show", newest, "--json"]))
    assert shown["model_config"]["num_hidden_layers"] == config.num_hidden_layers
    assert any("attention.qkv" in str(tensor) for tensor in shown["tensors"])
    run_program(["ckpt", "export", newest, folder / "export"])


def check_export(folder: Path) -> None:
    """What `conclave ckpt export` makes of a checkpoint is what the script itself saves for Transformers."""
    exported, saved = (AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32) for name in ("export", "model"))
    left, right = exported.state_dict(), saved.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def goes_on_in_the_program(folder: Path) -> None:
    (folder / "job").mkdir()
    (folder / "job/config.json").write_text((folder / "model/config.json").read_text())
    write_tokens(folder / "job/tokens", random_documents())
    job = SmallJob(folder / "job", {"run.steps": 3, "run.seed": 0, "checkpoint.resume": str(folder / "checkpoints/step-00000001")})
    job.must_run(1)
    assert [record["step"] for record in job.metrics()] == [2, 3]


def every_family() -> None:
    """Each family of the program: the checkpoint of a script exports to its model, and comes back at another layout."""
    for family in OF_THE_PROGRAM:
        folder = shared_folder()
        model, optimizer = start(family, 2, True)
        train(model, optimizer, 0, 1, True)
        conclave.save_checkpoint(model, optimizer, folder, 1, asynchronous=False)
        conclave.save_pretrained(model, folder / "model")
        if dist.get_rank() == 0:
            run_program(["ckpt", "export", folder / "checkpoints/step-00000001", folder / "export"])
            check_export(folder)
            goes_on_in_the_program(folder)
        other, its_optimizer = start(family, 1, False)
        conclave.load_checkpoint(other, its_optimizer, folder)
        for name, parameter in other.named_parameters():
            assert torch.equal(parameter.detach(), whole(model.get_parameter(name).detach())), f"{family}: {name}"
        dist.barrier()


def check_damage(family: str, folder: Path) -> None:
    """A damaged newest one is passed over; all damaged is refused on all ranks."""
    if dist.get_rank() == 0:
        file = next((folder / "checkpoints/step-00000006").glob("rank-*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    dist.barrier()
    model, optimizer = start(family, 2, True)
    assert conclave.load_checkpoint(model, optimizer, folder)["step"] == 4
    with pytest.raises(conclave.CheckpointError, match="rank-"):
        conclave.load_checkpoint(model, optimizer, folder / "checkpoints/step-00000006")


def refusals() -> None:
    rank, folder = dist.get_rank(), shared_folder()
    model, optimizer = start("mixtral", 2, True)
    assert conclave.load_checkpoint(model, optimizer, folder) is None
    with pytest.raises(conclave.ConfigError, match="cannot be written as JSON"):
        conclave.save_checkpoint(model, optimizer, folder, 1, content={1, 2} if rank == 1 else 3)
    with pytest.raises(conclave.ConfigError, match="keep is 0"):
        conclave.save_checkpoint(model, optimizer, folder, 1, keep=0)
    with pytest.raises(conclave.UnsupportedError, match="SGD"):
        conclave.save_checkpoint(model, torch.optim.SGD(model.parameters(), lr=0.1), folder, 1)
    with pytest.raises(conclave.OrderError, match="transform"):
        conclave.save_checkpoint(tiny_model("mixtral"), None, folder, 1)
    with pytest.raises(conclave.CheckpointError):
        conclave.save_checkpoint(model, optimizer, "/proc/nowhere", 1)
    conclave.save_checkpoint(model, None, folder, 1, asynchronous=False)
    wider = conclave.transform(tiny_model("mixtral", num_hidden_layers=3), conclave.MoEConfig())
    with pytest.raises(conclave.CheckpointError, match="another model"):
        conclave.load_checkpoint(wider, None, folder)
    assert conclave.load_checkpoint(model, optimizer, folder)["content"] is None, "without moments the optimizer begins anew"


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_goes_on_at_any_layout(ranks):
    run_torch_ranks(ranks, goes_on, patience=400)


@pytest.mark.slow
def test_checkpoints_of_every_family_are_the_programs():
    run_torch_ranks(2, every_family, patience=400)


def test_refusals():
    run_torch_ranks(2, refusals)



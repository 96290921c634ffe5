"""Wrong uses of the Python package: each is one exception of a documented class, before any work, and says the reason and the remedy."""

import re
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_models import tiny_config, tiny_model
from torch.distributed.fsdp import fully_shard as torch_fully_shard
from torch_ranks import run_torch_ranks
from transformers import AutoModelForCausalLM

import conclave


def on_meta(family="mixtral", **changes):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config(family, **changes))


def wrong_configurations() -> None:
    cases = [
        ({"expert_paralel_degree": 2}, conclave.ConfigError, "Did you mean"),
        ({"expert_parallel_degree": "two"}, conclave.ConfigError, "expert_parallel_degree"),
        ({"expert_parallel_degree": 0}, conclave.ConfigError, "at least 1"),
        ({"expert_parallel_degree": 3}, conclave.LayoutError, "2 ranks cannot be divided"),
        ({"hybrid_shard_degree": 5}, conclave.LayoutError, "hybrid_shard_degree is 5"),
        ({"tensor_parallel_degree": 2}, conclave.ConfigError, "tensor_parallel_degree"),
        ({"sm_activation_offloading": "yes"}, conclave.ConfigError, "activation_offloading"),
        ({"activation_loading_horizon": 0}, conclave.ConfigError, "at least 1"),
        ({"allow_empty_shards": 1}, conclave.ConfigError, "true or false"),
        ({"run": {"steps": 5}}, conclave.UnsupportedError, "key of the program"),
        ({"moe": {"moe_load_balencing": "none"}}, conclave.ConfigError, "moe_load_balancing"),
        ("nowhere.yaml", conclave.ConfigError, "cannot be read"),
    ]
    for config, error, text in cases:
        with pytest.raises(error, match=text):
            conclave.init(config)
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        for content, text in [(b"parallel: [", "not YAML"), (b"- 1\n", "list")]:
            Path(file.name).write_bytes(content)
            with pytest.raises(conclave.ConfigError, match=text):
                conclave.init(file.name)
    for fields, text in (({"bias_update_rate": 0.1}, "or moe.moe_load_balancing to bias"), ({"aux_loss_scope": "all_ranks"}, "moe_load_balancing='aux_loss'"),
                         ({"sinkhorn_tolerance": 0.1, "moe_load_balancing": "bias"}, "moe.moe_load_balancing is bias, which does not use it"), ({"drop_policy": "position"}, "capacity_factor"),
                         ({"dispatcher": "all_to_all", "moe_all_to_all_dispatcher": False}, "one of the two"), ({"moe_z_loss_coeff": -1.0}, "moe_z_loss_coeff"),
                         ({"dispatcher": "all_gather", "overload": "spill"}, "spill")):
        with pytest.raises(conclave.ConfigError, match=text):
            conclave.MoEConfig(**fields)
    with pytest.raises(conclave.ConfigError, match="aux_loss"):
        conclave.MoEConfig(moe_load_balancing="auxloss")


def wrong_models() -> None:
    cases = [
        (lambda: AutoModelForCausalLM.from_config(tiny_config("mixtral", num_local_experts=3)), conclave.LayoutError, "3 experts"),
        (lambda: tiny_model("mixtral", hidden_act="gelu"), conclave.UnsupportedModelError, "silu"),
        (lambda: torch.nn.Linear(2, 2), conclave.UnsupportedModelError, "conclave.nn.MoE"),
        (lambda: tiny_model("mixtral", seed=dist.get_rank()), conclave.ProcessGroupError, "different weights"),
        (lambda: conclave.transform(tiny_model("mixtral")), conclave.OrderError, "transformed already"),
        (lambda: torch_fully_shard(tiny_model("mixtral")), conclave.OrderError, "before fully_shard"),
        (lambda: torch.nn.parallel.DistributedDataParallel(tiny_model("mixtral")), conclave.OrderError, "DistributedDataParallel"),
        (half_on_meta, conclave.OrderError, "half on the meta device"),
    ]
    for build, error, text in cases:
        torch.manual_seed(0)
        with pytest.raises(error, match=text):
            conclave.transform(build())


def half_on_meta():
    model = tiny_model("mixtral")
    model.lm_head.to("meta")
    return model


def ranks_disagree() -> None:
    """One rank is at fault, every rank says so, and nobody waits."""
    rank = dist.get_rank()
    config = conclave.MoEConfig
    cases = [
        (lambda: tiny_model("mixtral") if rank == 0 else on_meta(), None, conclave.OrderError, "rank 0 has real weights.*\n.*load_state_dict_from_rank0"),
        (lambda: tiny_model("mixtral") if rank == 1 else on_meta(), None, conclave.OrderError, "rank 1 has real weights.*\n.*load_state_dict_from_rank0"),
        (lambda: tiny_model("mixtral", num_hidden_layers=2 + rank), None, conclave.ProcessGroupError, "rank 1 has built another model"),
        (lambda: tiny_model("mixtral").to(torch.float32 if rank else torch.bfloat16), None, conclave.ProcessGroupError, "rank 1 has built another model"),
        (lambda: tiny_model("mixtral") if rank == 0 else torch.nn.Linear(2, 2), None, conclave.UnsupportedModelError, "conclave.nn.MoE"),
        (lambda: half_on_meta() if rank == 0 else on_meta(), None, conclave.OrderError, "half on the meta device"),
        (lambda: tiny_model("mixtral").train(rank == 0), None, conclave.ProcessGroupError, "evaluation mode"),
        (lambda: tiny_model("mixtral"), config(overload="spill" if rank else "none"), conclave.ProcessGroupError, "different MoEConfigs"),
    ]
    for build, moe, error, text in cases:
        with pytest.raises(error, match=text):
            conclave.transform(build(), moe)
    with pytest.raises(conclave.ConfigError, match="expert_parallel_degree is 1 on rank 0 and 2 on rank 1"):
        conclave.init({"expert_parallel_degree": 1 + rank})
    with pytest.raises(conclave.ConfigError, match="rank 1 refused.*Did you mean"):
        conclave.init({"expert_parallel_degree": 1} if rank == 0 else {"expert_paralel_degree": 1})
    with pytest.raises(conclave.ConfigError, match="random_seed is 5 on rank 0 and None on rank 1"):
        conclave.init({"random_seed": 5} if rank == 0 else None)


def wrong_balancing() -> None:
    """What a transformed model would not use is not taken in silence."""
    cases = [
        ("deepseek_v3", dict(moe_load_balancing="aux_loss"), conclave.UnsupportedModelError, "computes none"),
        ("dots1", dict(moe_aux_loss_coeff=0.1), conclave.UnsupportedModelError, "computes none"),
        ("mixtral", dict(moe_aux_loss_coeff=0.1), conclave.ConfigError, "moe_load_balancing='aux_loss'"),
        ("mixtral", dict(moe_load_balancing="sinkhorn", moe_aux_loss_coeff=0.1), conclave.ConfigError, "use it"),
        ("deepseek_v3", dict(moe_z_loss_coeff=0.1), conclave.UnsupportedModelError, "softmax routers"),
        ("dots1", dict(moe_load_balancing="bias"), conclave.UnsupportedModelError, "softmax routers"),
        ("glm4_moe", dict(capacity_factor=1.0), conclave.UnsupportedModelError, "softmax routers"),
        ("deepseek_v3", dict(router_jitter_noise=0.1), conclave.UnsupportedModelError, "no jitter"),
        ("mixtral", dict(smp_moe=False), conclave.ConfigError, "use true"),
    ]
    for family, options, error, text in cases:
        with pytest.raises(error, match=text):
            conclave.transform(tiny_model(family), conclave.MoEConfig(**options))
    model = conclave.transform(tiny_model("mixtral"), conclave.MoEConfig(moe_load_balancing="aux_loss", aux_loss_layers="each"))
    with pytest.raises(conclave.ConfigError, match="output_router_logits is True"):
        model(input_ids=torch.zeros((1, 4), dtype=torch.long), output_router_logits=True)


def wrong_order() -> None:
    plain = tiny_model("mixtral")
    calls = [conclave.fully_shard, conclave.synchronize_gradients, conclave.state_dict, conclave.materialize, conclave.parameter_groups,
             conclave.load_metrics, lambda model: conclave.clip_grad_norm_(model, 1.0), lambda model: conclave.save_pretrained(model, "unused")]
    for call in calls:
        with pytest.raises(conclave.OrderError, match="conclave.transform"):
            call(plain)
    model = conclave.transform(tiny_model("mixtral"))
    with pytest.raises(conclave.OrderError, match="conclave.save_pretrained"):
        model.save_pretrained("unused")
    with pytest.raises(conclave.OrderError, match="not on the meta device"):
        conclave.materialize(model)
    with pytest.raises(conclave.UnsupportedError, match="use_reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    conclave.fully_shard(model)
    with pytest.raises(conclave.OrderError, match="sharded already"):
        conclave.fully_shard(model)
    with pytest.raises(conclave.OrderError, match="averages gradients already"):
        conclave.synchronize_gradients(model)
    meta = conclave.transform(on_meta())
    for call in (conclave.check_materialized, conclave.state_dict):
        with pytest.raises(conclave.NotMaterializedError, match="gate_up_proj"):
            call(meta)
    with pytest.raises(conclave.ConfigError, match="top_k is 9"):
        conclave.nn.MoE(8, 8, 8, 9)
    with pytest.raises(conclave.LayoutError, match="3 experts"):
        conclave.nn.MoE(8, 8, 3, 1)


def wrong_checkpoints() -> None:
    shared = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    folder = Path(shared[0])
    model = conclave.transform(tiny_model("mixtral"))
    conclave.save_pretrained(model, folder / "good")
    cases = [
        (tiny_model("mixtral"), folder / "nowhere", "model.safetensors"),
        (tiny_model("mixtral", intermediate_size=40), folder / "good", r"shape \[48, 32\]"),
        (tiny_model("mixtral", num_local_experts=4), folder / "good", "8 experts .* the model has 4"),
        (tiny_model("mixtral", num_hidden_layers=3), folder / "good", "lacks"),
        (tiny_model("mixtral", num_hidden_layers=1), folder / "good", "no place for"),
    ]
    for other, path, text in cases:
        with pytest.raises(conclave.CheckpointError, match=text):
            conclave.load_pretrained(conclave.transform(other), path)
    with pytest.raises(conclave.CheckpointError, match="rank 1 refused"):
        conclave.load_pretrained(model, folder / ("good" if dist.get_rank() == 0 else "nowhere"))
    for name, text in (("pytorch_model.bin", "Transformers' from_pretrained"), ("model.pt", "load_state_dict_from_rank0"), (".metadata", "dcp.load")):
        path = folder / f"folder of {name}"
        path.mkdir(exist_ok=True)
        (path / name).touch()
        with pytest.raises(conclave.CheckpointError, match=text):
            conclave.load_pretrained(model, path)
    (folder / "file").touch()
    with pytest.raises(conclave.CheckpointError, match="could not be saved"):
        conclave.save_pretrained(model, folder / "file")
    with pytest.raises(conclave.CheckpointError, match="None on the others"):
        conclave.load_state_dict_from_rank0(model, None)
    with pytest.raises(conclave.CheckpointError, match="lacks"):
        conclave.load_state_dict_from_rank0(model, {} if dist.get_rank() == 0 else None)
    with pytest.raises(conclave.CheckpointError, match="'model'"):
        conclave.load_state_dict(model, {})
    dist.barrier()


def on_two_ranks() -> None:
    with pytest.raises(conclave.ProcessGroupError, match="conclave.init was not called"):
        conclave.transform(tiny_model("mixtral"))
    wrong_configurations()
    conclave.init({"expert_parallel_degree": 2})
    wrong_models()
    ranks_disagree()
    wrong_balancing()
    wrong_order()
    wrong_checkpoints()


def test_wrong_uses_on_two_ranks():
    run_torch_ranks(2, on_two_ranks)


def test_no_process_group():
    with pytest.raises(conclave.ProcessGroupError, match="torchrun"):
        conclave.init()


@pytest.mark.parametrize("version", ["2.10.0", "2.12.0+cu130"])
def test_another_torch_is_refused(version):
    from conclave._library import check_torch_version

    with pytest.raises(conclave.TorchVersionError, match=r"pip install torch==2\.11\.0"):
        check_torch_version(version)
    check_torch_version("2.11.0+cpu")


def test_torch_version_is_the_one_the_build_takes():
    from conclave._library import TORCH_VERSION

    root = Path(__file__).resolve().parents[2]
    assert f'set(CONCLAVE_TORCH_VERSION "{TORCH_VERSION}")' in (root / "cmake/Torch.cmake").read_text()
    assert f"torch=={TORCH_VERSION}" in (root / "requirements.txt").read_text().splitlines()


def test_every_error_is_of_one_family():
    for name in dir(conclave):
        value = getattr(conclave, name)
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, conclave.ConclaveError) and value.__doc__, name


def test_documented_names_exist_and_every_name_is_documented():
    docs = Path(__file__).resolve().parents[2] / "docs"
    text = "".join((docs / page).read_text() for page in ("python.md", "migration.md"))
    named = set(re.findall(r"\bconclave\.(\w+)", text))
    assert named <= {*conclave.__all__, "data", "smp"}
    assert {name for name in conclave.__all__ if not re.search(rf"\b{name}\b", text)} == set()

"""PEFT on a transformed model, added before `transform` or after it, against Transformers and PEFT in one process.

Oracle: PEFT's own model with the batch of all ranks, PEFT's own files. Tolerance: 1e-5 relative to the largest value, fp32 sums in another order.
"""

import copy
import json
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers
from compared_steps import error_of, whole
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from test_trainer import SAMPLES, Tokens, arguments_for, logs_of
from tiny_models import batches, tiny_model
from torch_ranks import run_torch_ranks

import conclave

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
KINDS = {
    "attention": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "experts": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=EXPERTS),
    "experts alone": LoraConfig(r=4, use_rslora=True, target_modules=[], target_parameters=EXPERTS),
    "router and head": LoraConfig(r=4, target_modules=["lm_head"], target_parameters=["mlp.gate.weight"]),
    "dora, whole router": LoraConfig(r=4, use_dora=True, target_modules=["q_proj"], modules_to_save=["gate"]),
    "ia3": IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]),
}
STEPS = 3


def shared_folder() -> Path:
    shared = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    return Path(shared[0])


def adapted(model, kind: str, seed: int = 3):
    """With the matrices B, which PEFT starts at 0, drawn: then A gets gradients at once."""
    torch.manual_seed(seed)
    model = get_peft_model(model, copy.deepcopy(KINDS[kind]))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=random))
    return model


def transformed(kind: str, order: str, sharded: bool, aux_loss: bool = False):
    plain = tiny_model("mixtral", output_router_logits=aux_loss)
    model = conclave.transform(adapted(plain, kind)) if order == "before" else adapted(conclave.transform(plain), kind)
    return conclave.fully_shard(model) if sharded else model


def optimizer_of(parameters) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-2, eps=1e-5, weight_decay=0.0)


def compare_training(kind: str, order: str, sharded: bool, checkpointing: bool = False) -> tuple:
    what = f"{kind}, {order} transform, sharded {sharded}, checkpointing {checkpointing}"
    plain, model = adapted(tiny_model("mixtral", output_router_logits=True), kind), transformed(kind, order, sharded, aux_loss=True)
    if checkpointing:
        model.gradient_checkpointing_enable()
    optimizers = optimizer_of([parameter for parameter in plain.parameters() if parameter.requires_grad]), optimizer_of(conclave.parameter_groups(model))
    for step, tokens in enumerate(batches(STEPS, dist.get_world_size())):
        expected = torch.stack([plain(input_ids=each, labels=each).loss for each in tokens]).mean()
        expected.backward()
        own = tokens[dist.get_rank()]
        loss = model(input_ids=own, labels=own).loss
        loss.backward()
        if not sharded:
            conclave.synchronize_gradients(model)
        for name, parameter in model.named_parameters():
            right = plain.get_parameter(name).grad
            assert parameter.requires_grad == plain.get_parameter(name).requires_grad, f"{what}: {name}"
            if step == 0 and right is not None:
                assert error_of(whole(parameter.grad), right) < 1e-5, f"{what}: gradient of {name}"
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.3).item()
        assert conclave.clip_grad_norm_(model, 0.3).item() == pytest.approx(norm, rel=1e-5), what
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        assert mean.item() / dist.get_world_size() == pytest.approx(expected.item(), rel=1e-5), what
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return plain, model


def compare_files(kind: str, order: str, sharded: bool, folder: Path) -> None:
    """The folder is PEFT's own, loads in plain PEFT, and goes back into a model of another layout."""
    plain, model = compare_training(kind, order, sharded)
    what = f"{kind}, {order} transform, sharded {sharded}"
    conclave.save_pretrained(model, folder / "ours")
    if dist.get_rank() == 0:
        plain.save_pretrained(folder / "right")
        left, right = load_file(folder / "ours/adapter_model.safetensors"), load_file(folder / "right/adapter_model.safetensors")
        assert {name: value.shape for name, value in left.items()} == {name: value.shape for name, value in right.items()}, what
        assert all(error_of(left[name], right[name]) < 1e-5 for name in right), what
        configs = [json.loads((folder / each / "adapter_config.json").read_text()) for each in ("ours", "right")]
        for config in configs:  # sets, in no order
            for key, value in config.items():
                config[key] = sorted(value) if isinstance(value, list) else value
        assert configs[0] == configs[1], f"{what}: {configs}"
        loaded = PeftModel.from_pretrained(tiny_model("mixtral"), folder / "ours").eval()
        tokens = batches(1, 1)[0, 0]
        assert error_of(loaded(tokens).logits, plain.eval()(tokens).logits) < 1e-4, what
    dist.barrier()
    conclave.init({"expert_parallel_degree": 1})
    again = conclave.load_pretrained(transformed(kind, "after", True), folder / "ours")
    conclave.init({"expert_parallel_degree": 2})
    by_peft = conclave.fully_shard(PeftModel.from_pretrained(conclave.transform(tiny_model("mixtral")), folder / "ours", is_trainable=True))
    for other in (again, by_peft):
        for (name, value), saved in zip(other.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(whole(value), whole(saved)), f"{what}: {name}"
    dist.barrier()


def check_two_adapters(folder: Path) -> None:
    """A folder for each beside the default's, as PEFT has it."""
    def build(model):
        model = adapted(model, "experts")
        torch.manual_seed(9)
        model.add_adapter("second", copy.deepcopy(KINDS["experts"]))
        return model

    conclave.init({"expert_parallel_degree": 2})
    model, plain = conclave.fully_shard(build(conclave.transform(tiny_model("mixtral")))), build(tiny_model("mixtral"))
    for each in (model, plain):
        each.set_adapter("second")
    conclave.save_pretrained(model, folder)
    if dist.get_rank() == 0:
        plain.save_pretrained(folder / "right")
        for name in ("adapter_model.safetensors", "second/adapter_model.safetensors"):
            left, right = load_file(folder / name), load_file(folder / "right" / name)
            assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in right), name
    dist.barrier()
    conclave.load_pretrained(model, folder)


def on_two_ranks() -> None:
    conclave.init({"expert_parallel_degree": 1})
    for order, sharded in (("before", True), ("after", False)):
        compare_training("experts", order, sharded)
    conclave.init({"expert_parallel_degree": 2})
    for kind in KINDS:
        for order, sharded in (("before", True), ("after", False)):
            compare_training(kind, order, sharded)
    compare_training("experts", "after", True, checkpointing=True)
    folder = shared_folder()
    for number, case in enumerate([("experts", "before", True), ("experts alone", "after", False), ("dora, whole router", "after", True),
                                   ("router and head", "before", False)]):
        conclave.init({"expert_parallel_degree": 2})
        compare_files(*case, folder / str(number))
    check_two_adapters(folder / "two")


def on_four_ranks() -> None:
    for shard in (0, 2):
        conclave.init({"expert_parallel_degree": 2, "hybrid_shard_degree": shard})
        for order in ("before", "after"):
            compare_training("experts", order, True)


@pytest.mark.parametrize(("ranks", "checks"), [(2, on_two_ranks), pytest.param(4, on_four_ranks, marks=pytest.mark.slow)])
def test_trains_and_saves_as_plain_peft(ranks, checks):
    run_torch_ranks(ranks, checks)


class OwnModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.embedding, self.head = torch.nn.Embedding(64, 8), torch.nn.Linear(8, 64)
        self.moe = conclave.nn.MoE(8, 16, 8, 2, initializer_range=0.3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        return self.head(hidden + self.moe(hidden)[0])


def own_models() -> None:
    """Adapters in a model of one's own: the same at every degree as at degree 1, where nothing is divided."""
    config = LoraConfig(r=2, target_modules=["head"], target_parameters=["moe.experts.gate_up_proj", "moe.experts.down_proj"])
    tokens = batches(1, 2)[0, dist.get_rank()]
    folder, results = shared_folder(), []
    for degree in (1, 2):
        conclave.init({"expert_parallel_degree": degree})
        torch.manual_seed(3)
        model = get_peft_model(OwnModel(), copy.deepcopy(config))
        random = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
        model(tokens).square().mean().backward()
        conclave.synchronize_gradients(model)
        results.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad})
        conclave.save_pretrained(model, folder / str(degree))
        conclave.load_pretrained(model, folder / "1")
    assert results[0].keys() == results[1].keys() and len(results[0]) == 6
    assert all(gradient.abs().max() > 0 and error_of(results[1][name], gradient) < 1e-5 for name, gradient in results[0].items())
    left, right = (load_file(folder / degree / "adapter_model.safetensors") for degree in ("1", "2"))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    dist.barrier()


def test_adapters_in_a_model_of_ones_own():
    run_torch_ranks(2, own_models)


def merged() -> None:
    """merge_and_unload on divided experts leaves a transformed model whose folder is that of the plain merged one."""
    conclave.init({"expert_parallel_degree": 2})
    folder = shared_folder()
    plain = adapted(tiny_model("mixtral"), "experts").merge_and_unload()
    for sharded in (False, True):
        model = transformed("experts", "after", sharded)
        tokens = batches(1, 2)[0, dist.get_rank()]
        model.eval()
        before = model(tokens).logits
        with model.disable_adapter():
            assert error_of(model(tokens).logits, tiny_model("mixtral").eval()(tokens).logits) < 1e-5
        if not sharded:
            reference = copy.deepcopy(model)
            with torch.no_grad():
                for name, parameter in reference.named_parameters():
                    if "lora_B" in name:
                        parameter.zero_()
            assert error_of(reference(tokens).logits, tiny_model("mixtral").eval()(tokens).logits) < 1e-5
            assert torch.equal(model(tokens).logits, before)
        model.merge_adapter()
        assert error_of(model(tokens).logits, before) < 1e-5
        model.unmerge_adapter()
        assert error_of(model(tokens).logits, before) < 1e-5
    model = transformed("experts", "before", False).merge_and_unload()
    conclave.save_pretrained(model, folder / "merged")
    if dist.get_rank() == 0:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged")
        for name, value in loaded.named_parameters():
            assert error_of(value.detach(), plain.get_parameter(name).detach()) < 1e-5, name
    dist.barrier()


def test_adapters_of_divided_experts_are_merged():
    run_torch_ranks(2, merged)


def refusals() -> None:
    """Each on all ranks at once, also where only one rank is at fault."""
    conclave.init({"expert_parallel_degree": 2})
    rank, folder = dist.get_rank(), shared_folder()
    copies = LoraConfig(target_modules=["q_proj"], modules_to_save=["experts"])
    with pytest.raises(conclave.UnsupportedError, match="target_parameters"):
        conclave.transform(get_peft_model(tiny_model("mixtral"), copies))
    with pytest.raises(conclave.UnsupportedError, match="target_parameters"):
        conclave.fully_shard(get_peft_model(conclave.transform(tiny_model("mixtral")), copies))
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(conclave.UnsupportedError, match="PROMPT_TUNING"):
        conclave.fully_shard(get_peft_model(conclave.transform(tiny_model("mixtral")), prompts))
    bare = conclave.transform(tiny_model("mixtral"))
    bare.add_adapter(copy.deepcopy(KINDS["attention"]))
    inside = transformed("attention", "before", False).get_base_model()
    for model in (bare, inside):
        for call in (conclave.save_pretrained, conclave.load_pretrained, lambda model, path: conclave.Trainer(model=model, args=arguments_for(path, 2))):
            with pytest.raises(conclave.UnsupportedError, match="get_peft_model"):
                call(model, folder / "bare")
    late = adapted(conclave.fully_shard(conclave.transform(tiny_model("mixtral"))), "attention")
    for call in (conclave.parameter_groups, lambda model: conclave.clip_grad_norm_(model, 1.0), lambda model: conclave.save_pretrained(model, folder / "late"),
                 lambda model: conclave.Trainer(model=model, args=arguments_for(folder, 2))):
        with pytest.raises(conclave.OrderError, match="get_peft_model before"):
            call(late)
    with pytest.raises(conclave.ProcessGroupError, match="torch.manual_seed"):
        conclave.fully_shard(adapted(conclave.transform(tiny_model("mixtral")), "attention", seed=rank))
    with pytest.raises(conclave.ProcessGroupError, match="torch.manual_seed"):
        conclave.synchronize_gradients(adapted(conclave.transform(tiny_model("mixtral")), "experts", seed=rank))
    with pytest.raises(conclave.ProcessGroupError, match="different weights|another model"):
        conclave.transform(adapted(tiny_model("mixtral"), "experts" if rank else "attention"))
    model = transformed("experts", "before", True)
    conclave.save_pretrained(model, folder / "good")
    with pytest.raises(conclave.OrderError, match="conclave.save_pretrained"):
        model.save_pretrained(folder / "plain")
    (folder / "file").touch()
    for path, text in ((folder / "file", "could not be saved"), (folder / "good" if rank == 0 else folder / "elsewhere", None)):
        if text:
            with pytest.raises(conclave.CheckpointError, match=text):
                conclave.save_pretrained(model, path)
        else:
            with pytest.raises(conclave.CheckpointError, match="rank 1 refused.*adapter_config.json"):
                conclave.load_pretrained(model, path)
    for kind in ("attention", "experts alone"):  # adapters of another kind, and fewer
        with pytest.raises(conclave.CheckpointError, match="adapter_config.json"):
            conclave.load_pretrained(transformed(kind, "before", False), folder / "good")
    with torch.device("meta"):
        empty = tiny_model("mixtral")
    empty = get_peft_model(conclave.transform(empty), copy.deepcopy(KINDS["attention"]))
    for call in (conclave.materialize, lambda model: conclave.load_pretrained(model, folder / "good")):
        with pytest.raises(conclave.OrderError, match="before get_peft_model"):
            call(empty)
    dist.barrier()


def test_refusals():
    run_torch_ranks(2, refusals)


def stock(folder: str, world: int) -> list[dict]:
    return logs_of(transformers.Trainer(model=adapted(tiny_model("mixtral"), "experts"), args=arguments_for(f"{folder}/stock", 2 * world),
                                        train_dataset=Tokens(SAMPLES), eval_dataset=Tokens(16)))


def by_trainer(folder: str) -> list[list[dict]]:
    logs = []
    for number, (degree, order, sharded, resume) in enumerate([(2, "before", False, None), (2, "after", True, None), (1, "after", True, "1/checkpoint-3")]):
        conclave.init({"expert_parallel_degree": degree})
        trainer = conclave.Trainer(model=transformed("experts", order, sharded), train_dataset=Tokens(SAMPLES), eval_dataset=Tokens(16),
                                   args=arguments_for(f"{folder}/{number}", 2))
        logs.append(logs_of(trainer, f"{folder}/{resume}" if resume else None))
        trainer.save_model(f"{folder}/{number}/final")
        if dist.get_rank() == 0:
            right, saved = load_file(f"{folder}/stock/checkpoint-6/adapter_model.safetensors"), load_file(f"{folder}/{number}/final/adapter_model.safetensors")
            assert right.keys() == saved.keys() and all(error_of(saved[name], right[name]) < 1e-4 for name in right)
            PeftModel.from_pretrained(tiny_model("mixtral"), f"{folder}/{number}/checkpoint-6")
        dist.barrier()
    return logs


@pytest.mark.slow
def test_the_trainer_trains_adapters_as_the_stock_one():
    with tempfile.TemporaryDirectory() as folder:
        (expected,) = run_torch_ranks(1, stock, folder, 2)
        for logs in run_torch_ranks(2, by_trainer, folder)[0]:
            assert len(logs) == len(expected)
            for line, right in zip(logs, expected, strict=True):
                for key in {"loss", "grad_norm", "eval_loss"} & set(right):
                    assert line[key] == pytest.approx(right[key], rel=1e-4), f"step {line['step']}: {key}"

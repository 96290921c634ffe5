"""What a user would take instead: Transformers' Mixtral under PyTorch's `fully_shard`, tuned. One rank; started by torchrun from sides.py.

With --expert-degree it is the same script with Conclave's lines in it (docs/python.md): transform, its own fully_shard, load_pretrained and
clip_grad_norm_.

Every decoder layer is a unit of its own and the rest is the root's; the next layer's parameters are gathered, without waiting, while a layer computes.
The objective is Conclave's: cross-entropy plus the auxiliary loss over the tokens of all ranks. Transformers takes the latter over a rank's own tokens;
here its two sums over experts are added up over the ranks first (2 x experts numbers a step), so that losses can be compared step by step.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import sample_order
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral import modeling_mixtral

import conclave

STATE_FILE = "transformers_state.pt"  # beside the checkpoint: the same parameters under Transformers' own names, to be mapped into memory


def make_checkpoint(config_file: Path, folder: Path, seed: int) -> None:
    """A randomly initialized model as a Hugging Face checkpoint, and as a state file for this program."""
    torch.manual_seed(seed)
    model = MixtralForCausalLM(MixtralConfig.from_json_file(config_file))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / STATE_FILE)
    model.save_pretrained(folder)


class WorldBalancingLoss:
    """Takes the place of Transformers' load_balancing_loss_func. `value` is the loss over all ranks; what is returned is a term of this rank whose
    gradient, averaged over the ranks as fully_shard does, is that of `value`."""

    value: float = math.nan

    def __call__(self, router_logits, experts: int, top_k: int, attention_mask=None) -> torch.Tensor:
        probabilities = torch.cat([F.softmax(logits.float(), dim=-1) for logits in router_logits])
        chosen = torch.topk(probabilities.detach(), top_k, dim=-1).indices
        count = torch.bincount(chosen.flatten(), minlength=experts).float()
        probability_sum = probabilities.sum(dim=0)
        world = torch.stack([count, probability_sum.detach()])
        dist.all_reduce(world)
        rows = probabilities.shape[0] * dist.get_world_size()
        self.value = experts * (world[0] / rows).dot(world[1] / rows).item()
        return experts * dist.get_world_size() * (world[0] / rows).dot(probability_sum / rows)


def sharded_model(settings: argparse.Namespace) -> MixtralForCausalLM:
    """The model with this rank's shards of the checkpoint's parameters. The whole model is never in this process's memory."""
    config = MixtralConfig.from_json_file(settings.config)
    with torch.device("meta"):
        model = MixtralForCausalLM._from_config(config, experts_implementation=settings.experts, attn_implementation="sdpa")
    if settings.expert_degree:
        conclave.init({"expert_parallel_degree": settings.expert_degree, "moe": {"overload": "spill", "spill_threshold": 1.05}})
        conclave.transform(model)
    policy = MixedPrecisionPolicy()
    if settings.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if settings.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = list(model.model.layers)
    if settings.expert_degree:
        conclave.fully_shard(model, mp_policy=policy)
    else:
        for layer in layers:
            fully_shard(layer, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
    for before, after in zip(layers, layers[1:], strict=False):
        before.set_modules_to_forward_prefetch([after])
        after.set_modules_to_backward_prefetch([before])
    for module in (model, *layers):
        module._set_unshard_async_op(True)
    if settings.expert_degree:
        return conclave.load_pretrained(model, settings.checkpoint).train()

    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies are computed, not loaded
    state = torch.load(settings.checkpoint / STATE_FILE, mmap=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            pieces = state[name].chunk(dist.get_world_size())
            local = parameter.to_local()
            if local.numel() > 0:
                local.copy_(pieces[dist.get_rank()])
    return model.train()


def peak_resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def optimizer_of(model: MixtralForCausalLM, settings: argparse.Namespace) -> torch.optim.AdamW:
    if settings.expert_degree:
        return torch.optim.AdamW(conclave.parameter_groups(model, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    scales = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), eps=1e-8, fused=True)


def train(settings: argparse.Namespace) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    balancing_loss = WorldBalancingLoss()
    modeling_mixtral.load_balancing_loss_func = balancing_loss
    model = sharded_model(settings)
    optimizer = optimizer_of(model, settings)
    coefficient = model.config.router_aux_loss_coef
    tokens = sample_order.read_tokens(settings.data)
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on, without what loading took
    lines = []
    for step in range(settings.steps):
        begin = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min(1.0, (step + 1) / settings.warmup_steps)
        rows = torch.from_numpy(sample_order.rows_of(tokens, settings.sequence, settings.seed, step, world_size, rank, settings.batch))
        output = model(input_ids=rows[:, :-1], use_cache=False, output_router_logits=True)
        cross_entropy = F.cross_entropy(output.logits.flatten(0, 1).float(), rows[:, 1:].flatten())
        (cross_entropy + coefficient * output.aux_loss).backward()
        mean = cross_entropy.detach().clone()
        del output, cross_entropy
        if settings.expert_degree:
            gradient_norm = conclave.clip_grad_norm_(model, settings.grad_clip).item()
        else:
            gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip).full_tensor().item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        dist.all_reduce(mean)
        lm_loss = mean.item() / world_size
        seconds = time.perf_counter() - begin

        peak = torch.tensor([peak_resident_bytes()])
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        lines.append({"step": step + 1, "loss": lm_loss + coefficient * balancing_loss.value, "lm_loss": lm_loss, "aux_loss": balancing_loss.value,
                      "grad_norm": gradient_norm, "step_seconds": seconds, "peak_resident_bytes": int(peak.item())})
    if rank == 0:
        settings.output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # All is measured and written: Gloo's threads, torn down by the interpreter's end, abort the process now and then.
    dist.barrier()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make-checkpoint", action="store_true", help="only make the checkpoint, without ranks")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--experts", choices=["grouped_mm", "eager"], default="grouped_mm")
    parser.add_argument("--expert-degree", type=int, default=0, help="divide the experts by conclave.transform; 0: plain Transformers")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--recompute", action="store_true", help="keep only each layer's input from forward to backward")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup-steps", type=int, default=1)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--grad-clip", type=float, default=1.0)
    settings = parser.parse_args()
    if settings.make_checkpoint:
        make_checkpoint(settings.config, settings.checkpoint, settings.seed)
    elif "RANK" not in os.environ:
        parser.error("start the ranks by torchrun, as sides.py does")
    else:
        train(settings)


if __name__ == "__main__":
    main()

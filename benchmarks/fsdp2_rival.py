"""What a user would take instead: Transformers' model of the same family under PyTorch's `fully_shard`, tuned. One rank; started by
sides.py, which takes torchrun where there are several.

With --expert-degree it is the same script with Conclave's lines in it (docs/python.md): transform, its own fully_shard, load_pretrained and
clip_grad_norm_; with --accelerate also accelerate, AdamW and the model's own loss.

Every decoder layer is a unit of its own and the rest is the root's; the next layer's parameters are gathered, without waiting, while a layer computes.
The objective is Conclave's: cross-entropy plus the auxiliary loss over the tokens of all ranks. Transformers takes the latter over a rank's own tokens;
here its two sums over experts are added up over the ranks first (2 x experts numbers a step), so that losses can be compared step by step.

With --device cuda it computes on a GPU and speaks by NCCL.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import sample_order
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

import conclave

STATE_FILE = "transformers_state.pt"  # beside the checkpoint: the same parameters under Transformers' own names, to be mapped into memory


def make_checkpoint(config_file: Path, folder: Path, seed: int) -> None:
    """A randomly initialized model as a Hugging Face checkpoint, and as a state file for this program."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config_file))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / STATE_FILE)
    model.save_pretrained(folder)


class WorldBalancingLoss:
    """Takes the place of Transformers' load_balancing_loss_func. `value` is the loss over all ranks; what is returned is a term of this rank whose
    gradient, averaged over the ranks as fully_shard does, is that of `value`."""

    @property
    def value(self) -> float:
        return self.experts * self.mean_product.item()  # only here is a GPU waited for

    def __call__(self, router_logits, experts: int, top_k: int, attention_mask=None) -> torch.Tensor:
        probabilities = torch.cat([F.softmax(logits.float(), dim=-1) for logits in router_logits])
        chosen = torch.topk(probabilities.detach(), top_k, dim=-1).indices
        count = torch.bincount(chosen.flatten(), minlength=experts).float()
        probability_sum = probabilities.sum(dim=0)
        world = torch.stack([count, probability_sum.detach()])
        dist.all_reduce(world)
        rows = probabilities.shape[0] * dist.get_world_size()
        self.experts, self.mean_product = experts, (world[0] / rows).dot(world[1] / rows)
        return experts * dist.get_world_size() * (world[0] / rows).dot(probability_sum / rows)


def sharded_model(settings: argparse.Namespace, config: PreTrainedConfig) -> PreTrainedModel:
    """The model with this rank's shards of the checkpoint's parameters, or of random ones. The whole model is never in this process's memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, experts_implementation=settings.experts, attn_implementation="sdpa")
    if settings.expert_degree:
        conclave.init({"expert_parallel_degree": settings.expert_degree, "moe": {"overload": "spill", "spill_threshold": 1.05}})
        conclave.transform(model)
    if settings.accelerate:
        conclave.accelerate(model)
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
    if settings.device == "cpu":  # gathers on a GPU have a stream of their own
        for module in (model, *layers):
            module._set_unshard_async_op(True)
    if settings.expert_degree:
        return conclave.load_pretrained(model, settings.checkpoint).train()

    model.to_empty(device=settings.device)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(settings.device)  # its frequencies are computed, not loaded
    state = torch.load(settings.checkpoint / STATE_FILE, mmap=True) if settings.checkpoint else None
    torch.manual_seed(settings.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local = parameter.to_local()
            if local.numel() == 0:
                continue
            if state:
                local.copy_(state[name].chunk(dist.get_world_size())[dist.get_rank()])
            elif local.ndim > 1:
                local.normal_(std=config.initializer_range)
            else:
                local.fill_(1)
    return model.train()


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """The most since forget_peak: what tensors had on the GPU, or what the process had in memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def optimizer_of(model: PreTrainedModel, settings: argparse.Namespace) -> torch.optim.AdamW:
    if settings.accelerate:
        return conclave.AdamW(conclave.parameter_groups(model, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.95), eps=1e-8)
    if settings.expert_degree:
        return torch.optim.AdamW(conclave.parameter_groups(model, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    scales = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), eps=1e-8, fused=True)


def losses_of(model: PreTrainedModel, part: torch.Tensor, coefficient: float, settings: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """What to differentiate, and the cross-entropy in it."""
    if settings.accelerate:  # the model takes the loss itself
        targets = part[:, 1:]
        output = model(input_ids=part[:, :-1], labels=targets, shift_labels=targets, use_cache=False, output_router_logits=True)
        return output.loss, (output.loss - coefficient * output.aux_loss).detach()
    output = model(input_ids=part[:, :-1], use_cache=False, output_router_logits=True)
    cross_entropy = F.cross_entropy(output.logits.flatten(0, 1).float(), part[:, 1:].flatten())
    return cross_entropy + coefficient * output.aux_loss, cross_entropy.detach()


def train(settings: argparse.Namespace) -> list[dict]:
    """What each step came to."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    balancing_loss = WorldBalancingLoss()
    config = AutoConfig.from_pretrained(settings.config)
    sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__module__].load_balancing_loss_func = balancing_loss
    model = sharded_model(settings, config)
    optimizer = optimizer_of(model, settings)
    coefficient = model.config.router_aux_loss_coef
    tokens = sample_order.read_tokens(settings.data)
    dist.barrier()
    forget_peak(settings.device)  # what loading took is not counted
    lines = []
    for step in range(settings.steps):
        begin = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min(1.0, (step + 1) / settings.warmup_steps)
        rows = torch.from_numpy(sample_order.rows_of(tokens, settings.sequence, settings.seed, step, world_size, rank, settings.batch)).to(settings.device)
        mean = torch.zeros((), device=settings.device)
        for part in rows.split(settings.micro_batch or settings.batch):
            share = len(part) / len(rows)
            loss, cross_entropy = losses_of(model, part, coefficient, settings)
            (share * loss).backward()
            mean += share * cross_entropy
            del loss
        if settings.expert_degree:
            gradient_norm = conclave.clip_grad_norm_(model, settings.grad_clip, optimizer=optimizer if settings.accelerate else None)
        else:
            gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip).full_tensor()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        dist.all_reduce(mean)
        lm_loss = mean.item() / world_size  # waits for a GPU
        seconds = time.perf_counter() - begin

        peak = torch.tensor([peak_bytes(settings.device)], device=settings.device)
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        lines.append({"step": step + 1, "loss": lm_loss + coefficient * balancing_loss.value, "lm_loss": lm_loss, "aux_loss": balancing_loss.value,
                      "grad_norm": gradient_norm.item(), "step_seconds": seconds,
                      "peak_memory_bytes" if settings.device == "cuda" else "peak_resident_bytes": int(peak.item())})
    return lines


def run_rank(settings: argparse.Namespace) -> None:
    if settings.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if settings.device == "cuda" else "gloo")
    torch.set_num_threads(1)
    lines = train(settings)
    if dist.get_rank() == 0:
        settings.output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # All is measured and written: Gloo's threads, torn down by the interpreter's end, abort the process now and then.
    dist.barrier()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make-checkpoint", action="store_true", help="only make the checkpoint, without ranks")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="where parameters come from; without it they are random")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--experts", choices=["grouped_mm", "eager"], default="grouped_mm")
    parser.add_argument("--accelerate", action="store_true", help="with --expert-degree: also with conclave.accelerate and conclave.AdamW")
    parser.add_argument("--expert-degree", type=int, default=0, help="divide the experts by conclave.transform; 0: plain Transformers")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--recompute", action="store_true", help="keep only each layer's input from forward to backward")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--micro-batch", type=int, help="sequences of a batch that are computed at once (default: all)")
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup-steps", type=int, default=1)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--grad-clip", type=float, default=1.0)
    settings = parser.parse_args()
    if (settings.make_checkpoint or settings.expert_degree) and not settings.checkpoint:
        parser.error("--checkpoint is needed")
    if settings.make_checkpoint:
        make_checkpoint(settings.config, settings.checkpoint, settings.seed)
    elif "RANK" not in os.environ:
        parser.error("start the ranks as sides.py does")
    else:
        run_rank(settings)


if __name__ == "__main__":
    main()

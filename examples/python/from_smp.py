"""A script written for SMP v2 (torch.sagemaker): only its imports have changed, and the lines marked so.

    torchrun --nproc-per-node 2 examples/python/from_smp.py --steps 20
    torchrun --nproc-per-node 2 examples/python/from_smp.py --steps 40 --resume      # also with another --expert-parallel-degree

docs/smp.md shows the difference line by line.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch
import torch.distributed as dist
from text import batch_of, read_text
from torch.distributed.fsdp import MixedPrecision, ShardingStrategy
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

import conclave  # changed: for save_pretrained
import conclave.smp as tsm  # changed: import torch.sagemaker as tsm
from conclave.smp import transform  # changed: from torch.sagemaker import transform
from conclave.smp.delayed_param import DelayedParamIniter  # changed, as the next ones, in this manner
from conclave.smp.fsdp import FullyShardedDataParallel as FSDP  # changed: from torch.distributed.fsdp
from conclave.smp.fsdp import offload_wrapper  # changed: from torch.distributed.algorithms._checkpoint.checkpoint_wrapper
from conclave.smp.grad_norm import clip_grad_norm_
from conclave.smp.moe.moe_config import MoEConfig


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--expert-parallel-degree", type=int, default=2)
    parser.add_argument("--hybrid-shard-degree", type=int, default=0)
    parser.add_argument("--moe-load-balancing", default="sinkhorn")
    parser.add_argument("--moe-aux-loss-coeff", type=float, default=0.001)
    parser.add_argument("--global-token-shuffle", type=int, default=0)
    parser.add_argument("--moe-all-to-all-dispatcher", type=int, default=1)
    parser.add_argument("--bf16", type=int, default=0)
    parser.add_argument("--pretrained", type=Path, help="fine-tunes this Hugging Face folder, which rank 0 alone reads")
    parser.add_argument("--checkpoint-dir", type=Path, default=Path("runs/from-smp"))
    parser.add_argument("--checkpoint-freq", type=int, default=10)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --checkpoint-dir")
    return parser.parse_args(arguments)


def create_model(args: argparse.Namespace, config: MixtralConfig) -> MixtralForCausalLM:
    if args.pretrained is not None and dist.get_rank() == 0:
        return MixtralForCausalLM.from_pretrained(args.pretrained, attn_implementation="eager")
    with torch.device("meta"):
        return MixtralForCausalLM._from_config(config, attn_implementation="eager")


def wrap(args: argparse.Namespace, model: MixtralForCausalLM) -> MixtralForCausalLM:
    finetunes = args.pretrained is not None
    moe_config = MoEConfig(smp_moe=True, random_seed=12345, moe_load_balancing=args.moe_load_balancing, global_token_shuffle=args.global_token_shuffle > 0,
                           moe_all_to_all_dispatcher=args.moe_all_to_all_dispatcher > 0, moe_aux_loss_coeff=args.moe_aux_loss_coeff,
                           use_cpu_initialization=finetunes and dist.get_rank() == 0)
    model = transform(model, config=moe_config, load_state_dict_from_rank0=finetunes)
    delayed_param_initer = DelayedParamIniter(model)
    with delayed_param_initer.validate_params_and_buffers_inited():
        model = FSDP(
            model,
            auto_wrap_policy=functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={MixtralDecoderLayer}),
            mixed_precision=MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, buffer_dtype=torch.float32) if args.bf16 else None,
            sharding_strategy=ShardingStrategy.HYBRID_SHARD,
            limit_all_gathers=True,
            use_orig_params=True,
            param_init_fn=delayed_param_initer.get_param_init_fn(),
            post_param_init_fn=delayed_param_initer.get_post_param_init_fn(),
            sync_module_states=finetunes,
        )
    model.gradient_checkpointing_enable()  # changed: apply_activation_checkpointing(model, ...)
    if tsm.state.sm_activation_offloading > 0:
        model = offload_wrapper(model)
    return model


def get_param_groups_by_weight_decay(model: torch.nn.Module) -> list[dict]:
    return conclave.parameter_groups(model, weight_decay=0.2)  # changed: dense parameters and experts in groups of their own


def main(arguments: list[str] | None = None, text: torch.Tensor | None = None, config: MixtralConfig | None = None) -> list[tuple[float, float]]:
    args = parse(arguments)
    dist.init_process_group("gloo")
    tsm.init({"expert_parallel_degree": args.expert_parallel_degree, "hybrid_shard_degree": args.hybrid_shard_degree, "sm_activation_offloading": True,
              "activation_loading_horizon": 2, "fsdp_cache_flush_warnings": True, "allow_empty_shards": True, "tensor_parallel_degree": 1,
              "context_parallel_degree": 1, "random_seed": 1})
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if config is None:
        config = MixtralConfig(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                               num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=256)
    model = wrap(args, create_model(args, config))
    optimizer = torch.optim.AdamW(get_param_groups_by_weight_decay(model), lr=3e-3, betas=(0.9, 0.95), eps=1e-5)
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=3e-4)

    total_steps = 0
    if args.resume:
        newest = max(args.checkpoint_dir.glob("mixtral-*steps"), key=lambda folder: int(folder.name[8:-5]))
        content = tsm.checkpoint.load(model, optimizer, newest)  # changed: any degrees, not only those that saved
        total_steps = content["total_steps"]
        lr_scheduler.load_state_dict(content["lr_scheduler"])

    model.train()
    text, log = read_text() if text is None else text, []
    while total_steps < args.steps:
        tokens = batch_of(text, total_steps, rank, ranks, sequences=2, length=64)
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens, attention_mask=None, labels=tokens)["loss"]
        loss.backward()
        grad_norm = clip_grad_norm_(model, 1.0)
        optimizer.step()
        lr_scheduler.step()
        total_steps += 1
        reduced = loss.detach().clone()
        dist.all_reduce(reduced)
        log.append((reduced.item() / ranks, grad_norm.item()))
        if rank == 0:
            print(f"step {total_steps}: loss {log[-1][0]:.3f}, gradient norm {log[-1][1]:.2f}", flush=True)
        if total_steps % args.checkpoint_freq == 0:
            folder = args.checkpoint_dir / f"mixtral-{total_steps}steps"
            tsm.checkpoint.async_save(model, optimizer, folder, total_steps=total_steps, lr_scheduler=lr_scheduler.state_dict())
    tsm.checkpoint.maybe_finalize_async_calls(blocking=True)
    conclave.save_pretrained(model, args.checkpoint_dir / "model")  # changed: safetensors by all ranks, not pytorch_model.bin by rank 0
    dist.destroy_process_group()
    return log


if __name__ == "__main__":
    main()

#include "step/step_settings.h"

#include "device/device.h"
#include "optim/optimizer.h"

namespace conclave {

StepSettings step_settings(const CheckedJob& checked, at::ScalarType compute, at::Device device) {
  const Job& job = checked.job;
  const DeviceFacts& facts = device_of(device).facts();
  const auto seed = static_cast<uint64_t>(job.run.seed);
  const at::ScalarType reduce = job.precision.reduce == Precision::bf16 ? at::kBFloat16 : at::kFloat;
  return {
      .parameters = {compute, reduce, device, facts.rounds_when_read, make_optimizer_rule(job.optimizer)->state()},
      .prefetch_units = job.parallel.prefetch_units,
      .reshard_after_forward = job.parallel.reshard_after_forward,
      .router = job.precision.router,
      .jitter_noise = checked.jitter_noise(),
      .seed = seed,
      .selection = selection_settings(job.moe),
      .capacity = {job.moe.capacity_factor.value_or(0), job.moe.drop_policy.value_or(DropPolicy::probability)},
      .dispatch = dispatch_settings(job.moe, job.precision.experts, seed, facts),
      .aux_loss = {job.moe.aux_loss_scope, job.moe.aux_loss_layers.value_or(AuxLossLayers::together)},
      .aux_coefficient = checked.aux_coefficient(),
      .z_coefficient = job.moe.moe_z_loss_coeff,
      .checkpointing = job.memory.activation_checkpointing,
      .offloads = job.memory.activation_offloading,
      .offload_folder = job.memory.offload_folder.value_or(job.run.output_dir),
      .loading_horizon = job.memory.activation_loading_horizon,
      .loss_chunk_tokens = job.memory.loss_chunk_tokens,
      .tokens_per_micro_step = checked.tokens_per_rank(),
      .micro_steps = checked.micro_steps,
      .optimizer = job.optimizer,
      .records_routing = job.metrics.record_routing,
  };
}

}  // namespace conclave

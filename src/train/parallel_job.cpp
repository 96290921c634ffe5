#include "train/parallel_job.h"

#include "base/log.h"
#include "comm/device.h"
#include "kernels/cuda_kernels.h"
#include "metrics/running_memory.h"
#include "train/compute_precision.h"
#include "train/upcycle.h"

namespace conclave {
namespace {

CheckedJob computable_on(at::Device device, CheckedJob job) {
  const std::optional<GpuChip> chip =
      device.is_cuda() ? std::optional(load_cuda_plugin(nullptr)->chip()) : std::nullopt;
  check_expert_precision(job.job.precision.experts, chip);
  return job;
}

}  // namespace

ParallelJob::ParallelJob(CheckedJob checked, World& world)
    : checked_(computable_on(world.device(), std::move(checked))),
      world_(world),
      axes_(checked_.layout, world.rank(),
            [&](const AxisGroup& group, const std::string& axis) { return world.communicator(group, axis); }),
      model_(checked_.model, axes_,
             {compute_dtype(checked_.job.precision.compute, world.device()),
              checked_.job.precision.reduce == Precision::bf16 ? at::kBFloat16 : at::kFloat, world.device(),
              /*readers_round=*/world.device().is_cpu()}) {
  for (const std::string& change : checked_.fitted) spdlog::info(change);
  auto& chunks = checked_.job.moe.dispatch_chunks;
  chunks = dispatch_chunks(checked_, world.process().local_world_size);
  if (*chunks > 1) spdlog::info("rows are dispatched in {} parts (moe.dispatch_chunks)", *chunks);
  if (!world.device().is_cuda()) return;
  host_world_.emplace(axes_.world(), world.device());
  use_cuda_kernels(load_cuda_plugin(nullptr)->kernels);
}

void start_parameters(ParallelJob& job) {
  const ModelSource& source = job.job().model;
  const auto seed = static_cast<uint64_t>(job.job().run.seed);
  if (source.init_from) {
    job.model().load_hugging_face(*source.init_from);
    spdlog::info("starting from the parameters of {}", source.init_from->string());
  } else if (source.upcycle_from) {
    upcycle(job.model(), *source.upcycle_from, {source.upcycle_noise, source.upcycle_reinit_fraction, seed},
            job.host_world());
    spdlog::info("starting from the dense model in {}: each of {} experts a copy of its layer's MLP",
                 source.upcycle_from->string(), job.model_config().num_local_experts);
  } else {
    job.model().initialize(seed);
  }
}

double ParallelJob::aux_coefficient() const {
  if (checked_.job.moe.moe_load_balancing != LoadBalancing::aux_loss) return 0.0;
  return checked_.job.moe.moe_aux_loss_coeff.value_or(checked_.model.router_aux_loss_coef);
}

double ParallelJob::most_resident_mebibytes() {
  return max_over_world({static_cast<double>(running_memory().peak_resident_bytes)})[0] / (1 << 20);
}

std::vector<double> ParallelJob::sum_over_world(const std::vector<double>& values) {
  return reduce_over_world(values, Reduction::sum);
}

std::vector<double> ParallelJob::max_over_world(const std::vector<double>& values) {
  return reduce_over_world(values, Reduction::max);
}

std::vector<double> ParallelJob::reduce_over_world(const std::vector<double>& values, Reduction reduction) {
  at::Tensor tensor = at::tensor(values, at::kDouble).to(device(), /*non_blocking=*/true);
  axes_.world().all_reduce(tensor, reduction).wait();
  tensor = tensor.to(at::kCPU);
  const auto* data = tensor.const_data_ptr<double>();
  return {data, data + values.size()};
}

}  // namespace conclave

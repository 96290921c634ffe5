#include "step/parallel_job.h"

#include "base/log.h"
#include "device/device.h"
#include "kernels/values.h"
#include "metrics/running_memory.h"
#include "step/compute_precision.h"

namespace conclave {
namespace {

CheckedJob computable_on(at::Device device, CheckedJob job) {
  check_expert_precision(job.job.precision.experts, device_of(device).chip());
  return job;
}

// One host's processor may lack what another's has.
at::ScalarType agreed_dtype(Precision precision, at::Device device, Communicator& world) {
  const at::ScalarType own = compute_dtype(precision, device);
  if (precision != Precision::automatic || !device.is_cpu()) return own;
  const at::Tensor lacks_bf16 = at::full({1}, own == at::kFloat ? 1.0 : 0.0, at::kFloat);
  world.all_reduce(lacks_bf16, Reduction::max).wait();
  return lacks_bf16.item<float>() > 0 ? at::kFloat : own;
}

std::string chosen_dispatch(CheckedJob& job, const World& world) {
  if (job.job.moe.overload && job.job.moe.dispatch_chunks) return "";  // a plan has chosen
  return choose_dispatch(job, spans_hosts(job, world.host_of_rank()));
}

}  // namespace

ParallelJob::ParallelJob(CheckedJob checked, World& world)
    : checked_(computable_on(world.device(), std::move(checked))),
      world_(world),
      axes_(checked_.layout, world.rank(),
            [&](const AxisGroup& group, const std::string& axis) { return world.communicator(group, axis); }),
      not_lent_because_(chosen_dispatch(checked_, world)),
      settings_(step_settings(checked_, agreed_dtype(checked_.job.precision.compute, world.device(), axes_.world()),
                              world.device())),
      model_(checked_.model, axes_, settings_.parameters) {
  if (!world.device().is_cpu()) host_world_.emplace(axes_.world(), world.device());
}

std::vector<std::string> ParallelJob::adaptations() const {
  std::vector<std::string> lines = checked_.fitted;
  if (!not_lent_because_.empty())
    lines.push_back(fmt::format("experts are not lent to idle ranks (moe.overload), because {}", not_lent_because_));
  if (const int64_t chunks = *checked_.job.moe.dispatch_chunks; chunks > 1)
    lines.push_back(fmt::format("rows are dispatched in {} parts (moe.dispatch_chunks)", chunks));
  return lines;
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
  tensor = to_host(tensor);
  const auto* data = tensor.const_data_ptr<double>();
  return {data, data + values.size()};
}

}  // namespace conclave

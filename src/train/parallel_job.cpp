#include "train/parallel_job.h"

#include "train/compute_precision.h"

namespace conclave {

ParallelJob::ParallelJob(CheckedJob checked, World& world)
    : checked_(std::move(checked)),
      world_(world),
      axes_(checked_.layout, world.rank(),
            [&](const AxisGroup& group, const std::string& axis) { return world.communicator(group, axis); }),
      model_(checked_.model, axes_,
             {compute_dtype(checked_.job.precision.compute, world.device()),
              checked_.job.precision.reduce == Precision::bf16 ? at::kBFloat16 : at::kFloat, world.device()}) {}

double ParallelJob::aux_coefficient() const {
  if (checked_.job.moe.moe_load_balancing != LoadBalancing::aux_loss) return 0.0;
  return checked_.job.moe.moe_aux_loss_coeff.value_or(checked_.model.router_aux_loss_coef);
}

std::vector<double> ParallelJob::sum_over_world(std::vector<double> values) {
  return reduce_over_world(std::move(values), Reduction::sum);
}

std::vector<double> ParallelJob::max_over_world(std::vector<double> values) {
  return reduce_over_world(std::move(values), Reduction::max);
}

std::vector<double> ParallelJob::reduce_over_world(std::vector<double> values, Reduction reduction) {
  at::Tensor tensor = at::tensor(values, at::kDouble).to(device());
  axes_.world().all_reduce(tensor, reduction).wait();
  tensor = tensor.to(at::kCPU);
  const double* data = tensor.const_data_ptr<double>();
  return {data, data + values.size()};
}

}  // namespace conclave

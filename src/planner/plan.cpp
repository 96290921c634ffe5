#include "planner/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "config/mixtral_parameters.h"
#include "planner/step_traffic.h"

namespace conclave {
namespace {

std::vector<std::pair<RankClass, PlannedRank>> classes_of(const CheckedJob& job, const DeviceDescription& device,
                                                          double imbalance) {
  const int world = job.layout.world_size(), degree = job.layout.degree(Axis::expert);
  const double most = std::min(imbalance, worst_imbalance(job));
  const auto planned = [&](double rows) {
    return plan_rank(job, 0, backend_of(device, world), device.has_bf16(), assume_rows(job, rows));
  };
  if (degree == 1 || most <= 1)
    return {{{world == 1 ? "the only rank" : fmt::format("all {} ranks", world), world, 1, {}}, planned(1)}};
  const double others = (degree - most) / (degree - 1);
  return {{{"the busiest rank of each expert group", world / degree, most, {}}, planned(most)},
          {{"the others, on average", world - world / degree, others, {}}, planned(others)}};
}

}  // namespace

Backend backend_of(const DeviceDescription& device, int world_size) {
  if (device.device.kind == DeviceKind::cuda) return Backend::cuda_nccl;
  return world_size == 1 ? Backend::cpu_alone : Backend::cpu_gloo;
}

Plan make_plan(const CheckedJob& given, const std::string& device_name, const DeviceDescription& device,
               double imbalance) {
  CheckedJob job = given;
  job.job.moe.dispatch_chunks = dispatch_chunks(job, device.network.ranks_per_node);
  if (job.job.precision.compute == Precision::bf16 && !device.has_bf16())
    user_error("precision.compute is bf16, but {} has no bf16 (compute.bf16_flops is 0). Use fp32 or auto.",
               device_name);
  if (job.job.precision.experts == ExpertPrecision::fp8 && !device.has_fp8())
    user_error(
        "precision.experts is fp8, but {} has no fp8 products with a scale for each block (compute.fp8_flops is 0). "
        "Use "
        "precision.experts: compute, or plan for h100-80 or h200-141.",
        device_name);
  auto classes = classes_of(job, device, imbalance);
  const PlannedRank& busiest = classes.front().second;
  const double worst = worst_imbalance(job);
  const PlannedRank in_worst_case =
      plan_rank(job, 0, busiest.backend, device.has_bf16(), assume_rows(job, std::max(worst, 1.0)));
  const std::vector<UnitDeclaration> units = declare_mixtral(job.model);

  Plan plan{job,
            device_name,
            device,
            busiest.compute_bytes,
            count_parameters(units),
            count_parameters_per_token(units, job.model),
            0,
            {},
            {},
            {},
            {},
            {}};
  for (const PlannedUnit& unit : busiest.units)
    for (const PlannedGroup& group : unit.groups) plan.parameters_of_rank += group.shard_numel;
  plan.worst = {"the busiest rank under the worst routing", job.layout.world_size() / job.layout.degree(Axis::expert),
                worst, step_memory(in_worst_case)};
  plan.evaluation = evaluation_memory(busiest);
  plan.traffic = step_traffic(busiest);
  plan.time = step_time(busiest, device);
  for (auto& [rank_class, rank] : classes) {
    rank_class.memory = step_memory(rank);
    plan.classes.push_back(rank_class);
  }
  return plan;
}

}  // namespace conclave

#include "planner/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/cuda_rules.h"
#include "base/error.h"
#include "model/parameters.h"

namespace conclave {
namespace {

PlannedRank planned_rank(const CheckedJob& job, const DeviceDescription& device, double imbalance) {
  return plan_rank(job, 0, device, std::make_shared<AssumedRouting>(job, 0, imbalance));
}

RankClass class_of(std::string who, int ranks, double imbalance, const CheckedJob& job,
                   const DeviceDescription& device) {
  return {std::move(who), ranks, imbalance, plan_step(planned_rank(job, device, imbalance))};
}

bool needs_more(const RankClass& a, const RankClass& b) {
  return a.step.memory.peak_of.total > b.step.memory.peak_of.total;
}

// Of the rows that routing can bring a rank, those that need most memory: the most there can be, or on CUDA the most
// with which the experts' products are grouped.
RankClass worst_class(const CheckedJob& job, const DeviceDescription& device) {
  const int degree = job.layout.degree(Axis::expert);
  const int64_t local = job.model.experts() / degree;
  const int64_t mean = job.tokens_per_rank() * job.model.top_k();
  const double grouped = static_cast<double>(local * most_grouped_rows) / static_cast<double>(mean);
  const double most = std::max(worst_imbalance(job), 1.0);
  const auto with = [&](double imbalance) {
    return class_of("a rank under the worst routing", job.layout.world_size() / degree, imbalance, job, device);
  };
  RankClass of_most = with(most);
  if (degree == 1 || grouped >= most) return of_most;
  RankClass of_grouped = with(grouped);
  return needs_more(of_grouped, of_most) ? of_grouped : of_most;
}

}  // namespace

std::vector<RankClass> plan_classes(const CheckedJob& job, const DeviceDescription& device, double imbalance) {
  const int world = job.layout.world_size(), degree = job.layout.degree(Axis::expert);
  const double most = std::min(imbalance, worst_imbalance(job));
  if (degree == 1 || most <= 1)
    return {class_of(world == 1 ? "the only rank" : fmt::format("all {} ranks", world), world, 1, job, device)};
  const double others = (degree - most) / (degree - 1);
  std::vector<RankClass> classes = {
      class_of("the busiest rank of each expert group", world / degree, most, job, device),
      class_of("the others, on average", world - world / degree, others, job, device)};
  std::stable_sort(classes.begin(), classes.end(), needs_more);
  return classes;
}

Plan make_plan(const CheckedJob& given, const std::string& device_name, const DeviceDescription& device,
               double imbalance) {
  CheckedJob job = given;
  choose_dispatch(job, spans_hosts(job, device.network.ranks_per_node));
  if (job.job.precision.compute == Precision::bf16 && !device.has_bf16())
    user_error("precision.compute is bf16, but {} has no bf16 (compute.bf16_flops is 0). Use fp32 or auto.",
               device_name);
  if (job.job.precision.experts == ExpertPrecision::fp8 && !device.has_fp8())
    user_error(
        "precision.experts is fp8, but {} has no fp8 products with a scale for each block (compute.fp8_flops is 0). "
        "Use precision.experts: compute, or plan for h100-80 or h200-141.",
        device_name);
  const std::vector<UnitDeclaration> units = declare_model(job.model);
  std::vector<RankClass> classes = plan_classes(job, device, imbalance);
  const auto busiest = std::max_element(
      classes.begin(), classes.end(), [](const RankClass& a, const RankClass& b) { return a.imbalance < b.imbalance; });
  Plan plan{job,
            device_name,
            device,
            busiest->step.compute_bytes,
            count_parameters(units),
            count_parameters_per_token(units, job.model),
            busiest->step.parameters,
            {},
            worst_class(job, device),
            plan_evaluation(planned_rank(job, device, busiest->imbalance)).memory,
            busiest->step};
  plan.classes = std::move(classes);
  return plan;
}

}  // namespace conclave

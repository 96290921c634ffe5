#include "planner/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "base/cuda_rules.h"
#include "base/error.h"
#include "model/parameters.h"
#include "planner/rank_loads.h"

namespace conclave {
namespace {

// A rank of the first expert group, in which `imbalance` is that of rank 0.
PlannedRank planned_rank(const CheckedJob& job, const DeviceDescription& device, double imbalance, int rank = 0) {
  return plan_rank(job, rank, device, std::make_shared<AssumedRouting>(job, 0, imbalance));
}

RankClass class_of(std::string who, int ranks, double imbalance, const CheckedJob& job,
                   const DeviceDescription& device) {
  return {std::move(who), ranks, imbalance, plan_step(planned_rank(job, device, imbalance))};
}

// The rank that computes most experts for another when rank 0 has so many rows; null: nothing is lent.
std::optional<RankClass> helper_of(const CheckedJob& job, const DeviceDescription& device, double imbalance) {
  const auto spill = spill_of(job, device);
  if (!spill) return std::nullopt;
  const int degree = job.layout.degree(Axis::expert);
  const RowsBySource rows = *AssumedRouting(job, 0, imbalance).of_layer(0);
  std::vector<int64_t> total(rows[0].size());
  for (const std::vector<int64_t>& of_source : rows)
    for (size_t expert = 0; expert < total.size(); ++expert) total[expert] += of_source[expert];
  const SpillPlan plan = plan_spill(total, degree, *spill);
  if (!plan.lends()) return std::nullopt;
  int helper = 0;
  for (int rank = 1; rank < degree; ++rank)
    if (plan.guests_of(rank).size() > plan.guests_of(helper).size()) helper = rank;
  return RankClass{"a rank that computes a lent expert", job.layout.world_size() / degree,
                   (degree - imbalance) / (degree - 1), plan_step(planned_rank(job, device, imbalance, helper)), true};
}

// With the least imbalance at which experts are lent.
std::optional<RankClass> helper_of_any(const CheckedJob& job, const DeviceDescription& device, double imbalance) {
  constexpr double clearly_above = 1.02;
  const double most = most_imbalance(job);
  const double least = std::min(most, std::max(imbalance, clearly_above * job.job.moe.spill_threshold));
  if (auto helper = helper_of(job, device, least)) return helper;
  return helper_of(job, device, most);
}

bool needs_more(const RankClass& a, const RankClass& b) {
  return a.step.memory.peak_of.total > b.step.memory.peak_of.total;
}

// Of the rows that routing can bring a rank, those that need most memory: the most there can be, or on CUDA the most
// with which the experts' products are grouped; where experts are lent, perhaps those with which it helps most.
RankClass worst_class(const CheckedJob& job, const DeviceDescription& device) {
  const int degree = job.layout.degree(Axis::expert);
  const int64_t local = job.model.experts() / degree;
  const int64_t mean = job.tokens_per_rank() * job.model.top_k();
  const double grouped = static_cast<double>(local * most_grouped_rows) / static_cast<double>(mean);
  const double most = std::max(worst_imbalance(job), 1.0);
  const auto with = [&](double imbalance) {
    return class_of("a rank under the worst routing", job.layout.world_size() / degree, imbalance, job, device);
  };
  RankClass worst = with(most);
  if (degree == 1) return worst;
  if (grouped < most)
    if (RankClass of_grouped = with(grouped); needs_more(of_grouped, worst)) worst = std::move(of_grouped);
  if (auto helper = helper_of(job, device, most_imbalance(job)); helper && needs_more(*helper, worst))
    worst = *std::move(helper);
  return worst;
}

}  // namespace

std::vector<RankClass> plan_classes(const CheckedJob& job, const DeviceDescription& device, double imbalance) {
  const int world = job.layout.world_size(), degree = job.layout.degree(Axis::expert);
  const double most = std::min(imbalance, most_imbalance(job));
  if (degree == 1)
    return {class_of(world == 1 ? "the only rank" : fmt::format("all {} ranks", world), world, 1, job, device)};
  std::vector<RankClass> classes;
  if (most <= 1) {
    classes.push_back(class_of(fmt::format("all {} ranks", world), world, 1, job, device));
  } else {
    const double others = (degree - most) / (degree - 1);
    classes = {class_of("the busiest rank of each expert group", world / degree, most, job, device),
               class_of("the others, on average", world - world / degree, others, job, device)};
  }
  if (auto helper = helper_of_any(job, device, most)) classes.push_back(*std::move(helper));
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
  const auto busiest = std::max_element(classes.begin(), classes.end(), [](const RankClass& a, const RankClass& b) {
    return std::make_tuple(!a.is_at_times, a.imbalance) < std::make_tuple(!b.is_at_times, b.imbalance);
  });
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

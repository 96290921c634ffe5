#include "apps/plan_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "apps/quantity_text.h"
#include "apps/replay_report.h"
#include "planner/collective_time.h"

namespace conclave {
namespace {

using nlohmann::ordered_json;

const char* meaning_of(MemoryCategory category) {
  switch (category) {
    case MemoryCategory::parameters:
      return "this rank's shards, fp32";
    case MemoryCategory::moments:
      return "AdamW's two, of the shards";
    case MemoryCategory::gradients:
      return "reduced, of the shards";
    case MemoryCategory::unsharded_parameters:
      return "gathered units";
    case MemoryCategory::unsharded_gradients:
      return "of whole units, until they are reduced";
    case MemoryCategory::activations:
      return "kept from forward to backward";
    case MemoryCategory::dispatch:
      return "rows on their way between ranks";
    case MemoryCategory::logits:
      return "of one chunk of tokens";
    case MemoryCategory::checkpoint:
      return "copies of what is being saved behind the steps";
    case MemoryCategory::workspace:
      break;
  }
  return "everything else, short-lived";
}

std::vector<std::string> assumptions_of(const Plan& plan) {
  std::vector<std::string> lines = assumptions_of_time(plan.device);
  const MoeConfig& moe = plan.job.job.moe;
  if (moe.moe_load_balancing == LoadBalancing::sinkhorn)
    lines.push_back(fmt::format(
        "sinkhorn never ends early: {} all-reduces of {} numbers a layer and micro-step, the most there can be "
        "(moe.sinkhorn_iterations)",
        moe.sinkhorn_iterations, plan.job.model.experts() + 1));
  if (moe.overload == OverloadPolicy::spill)
    lines.push_back(fmt::format(
        "experts are lent in steps in which a rank has more than {} times the mean rows (moe.spill_threshold): memory "
        "counts a rank that computes one, time and traffic count lending where --imbalance is above that",
        plan.job.job.moe.spill_threshold));
  if (plan.job.document_tokens)
    lines.push_back(fmt::format("documents of {} tokens, of which none sees another one (data.document_mask)",
                                *plan.job.document_tokens));
  if (moe.global_token_shuffle)
    lines.emplace_back("after the shuffle each rank of an expert group has an equal part of each expert's rows");
  return lines;
}

std::string count_text(double count) {
  if (count >= 1e9) return fmt::format("{:.1f} B", count / 1e9);
  if (count >= 1e6) return fmt::format("{:.1f} M", count / 1e6);
  return fmt::format("{:.0f}", count);
}

const char* precision_of(const Plan& plan) {
  return plan.compute_bytes == 2 ? "bf16" : "fp32";
}

std::string head_text(const Plan& plan) {
  const CheckedJob& job = plan.job;
  const int world = job.layout.world_size();
  return fmt::format(
      "{} parameters, {} of them used by each token; {} of {}, computing in {}\n{}\n"
      "a step: {} x {} of {} x {} = {} tokens\n",
      count_text(static_cast<double>(plan.parameters)), count_text(static_cast<double>(plan.parameters_per_token)),
      world == 1 ? "1 rank" : fmt::format("{} ranks", world), plan.device_name, precision_of(plan),
      describe(job.layout), world == 1 ? "1 rank" : fmt::format("{} ranks", world),
      job.micro_steps == 1 ? "1 micro-step" : fmt::format("{} micro-steps", job.micro_steps),
      job.job.data.micro_batch_size == 1 ? "1 sequence" : fmt::format("{} sequences", job.job.data.micro_batch_size),
      job.job.data.sequence_length, job.tokens_per_step());
}

std::string verdict_text(const Plan& plan, const PlannedMemory& memory) {
  const double left = plan.device.usable_bytes() - static_cast<double>(memory.peak_of.total);
  return fmt::format("{} {} ({} less {} reserved): {}", left >= 0 ? "fits in" : "DOES NOT FIT in", plan.device_name,
                     size_text(plan.device.memory.bytes), size_text(plan.device.memory.reserved_bytes),
                     left >= 0 ? size_text(left) + " left" : size_text(-left) + " too much");
}

std::string memory_text(const Plan& plan) {
  const RankClass& most = plan.classes.front();
  const bool small = plan.peak_bytes() < gib;
  const double unit = small ? mib : gib;
  std::string text =
      fmt::format("\nmemory of {}, in {}        highest   at the peak\n", most.who, small ? "MiB" : "GiB");
  const auto line = [&](const std::string& name, int64_t highest, int64_t at_peak, const char* meaning) {
    text += fmt::format("  {:<22}{:>12.3f}  {:>12.3f}   {}\n", name, highest / unit, at_peak / unit, meaning);
  };
  for (int i = 0; i < memory_categories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    line(name_of(category), most.step.memory.peak_of.of[i], most.step.memory.at_peak.of[i], meaning_of(category));
  }
  line("total", most.step.memory.peak_of.total, most.step.memory.at_peak.total, "");
  text += fmt::format("  the peak: {}\n  {}\n", most.step.memory.moment, verdict_text(plan, most.step.memory));
  for (size_t i = 1; i < plan.classes.size(); ++i)
    text += fmt::format("  {} ({} ranks, {:.2f} times the mean rows): {}\n", plan.classes[i].who, plan.classes[i].ranks,
                        plan.classes[i].imbalance,
                        size_text(static_cast<double>(plan.classes[i].step.memory.peak_of.total)));
  if (plan.worst.imbalance != 1)
    text += fmt::format("  {} ({:.2f} times the mean rows): {}, {}\n", plan.worst.who, plan.worst.imbalance,
                        size_text(static_cast<double>(plan.worst.step.memory.peak_of.total)),
                        verdict_text(plan, plan.worst.step.memory));
  if (most.step.memory.offloaded > 0)
    text +=
        fmt::format("  offloaded layer inputs: {} in {}\n", size_text(static_cast<double>(most.step.memory.offloaded)),
                    plan.device.device.kind == at::kCUDA ? "host memory" : "a scratch file");
  text += fmt::format("  a validation between two steps: {}\n",
                      size_text(static_cast<double>(plan.evaluation.peak_of.total)));
  return text;
}

std::string traffic_text(const Plan& plan) {
  std::string text = "\ntraffic of a rank and step, sent           calls            MB\n";
  for (const auto& [key, traffic] : plan.busiest.traffic)
    text += fmt::format("  {:<16}{:<18}{:>12}  {:>12.3f}\n", key.first, key.second, traffic.calls, traffic.bytes / 1e6);
  return text;
}

std::string time_text(const Plan& plan) {
  const PlannedTime& time = plan.busiest.time;
  std::string text = fmt::format("\ntime of a step (an estimate)   {}\n", seconds_text(time.step_seconds));
  const auto line = [&](const char* name, double seconds, const char* meaning) {
    text += fmt::format("  {:<16}{:>12}  {:>5.1f} %   {}\n", name, seconds_text(seconds),
                        100 * seconds / time.step_seconds, meaning);
  };
  line("products", time.products, "matrix products, repeated ones included");
  line("attention", time.attention, "scores, softmax and values");
  line("memory passes", time.memory_passes, "between the products");
  line("dispatch", time.dispatch, "rows on their way: not hidden");
  line("gather wait", time.gather_wait, "for parameters, beyond what computation hides");
  line("reduce wait", time.reduce_wait, "for gradients, beyond what computation hides");
  if (time.offload_wait > 0) line("offload wait", time.offload_wait, "for layer inputs on their way back");
  line("optimizer", time.optimizer, "norm and AdamW over the shards");
  for (const auto& [axis, seconds] : time.busy_by_axis)
    text += fmt::format("  the {} axis carries data for {}\n", axis, seconds_text(seconds));
  text += fmt::format("  {:.0f} tokens/s over all ranks; model FLOPs utilization {:.1f} % of {:.4g} TFLOP/s a rank\n",
                      time.tokens_per_second, 100 * time.model_flops_utilization,
                      plan.device.peak_flops(plan.compute_bytes) / 1e12);
  text += "assumed:\n";
  for (const std::string& assumption : assumptions_of(plan)) text += fmt::format("  - {}\n", assumption);
  return text;
}

std::string options_text(const LayoutOption& option) {
  std::string text;
  for (const std::string& change : option.changes) text += " --set " + change;
  return option.is_given ? " (the job as it stands)" : text;
}

ordered_json json_of(const MemoryUse& use) {
  ordered_json object = {{"total", use.total}};
  for (int i = 0; i < memory_categories; ++i) object[name_of(static_cast<MemoryCategory>(i))] = use.of[i];
  return object;
}

ordered_json json_of(const Plan& plan, const RankClass& of) {
  return {{"who", of.who},
          {"ranks", of.ranks},
          {"imbalance", of.imbalance},
          {"at_times", of.is_at_times},
          {"peak_bytes", of.step.memory.peak_of.total},
          {"peak_moment", of.step.memory.moment},
          {"offloaded_bytes", of.step.memory.offloaded},
          {"fits", static_cast<double>(of.step.memory.peak_of.total) <= plan.device.usable_bytes()},
          {"at_peak", json_of(of.step.memory.at_peak)},
          {"highest", json_of(of.step.memory.peak_of)}};
}

ordered_json json_of(const PlannedTime& time) {
  ordered_json object = {{"step_seconds", time.step_seconds},  {"products", time.products},
                         {"attention", time.attention},        {"memory_passes", time.memory_passes},
                         {"dispatch", time.dispatch},          {"gather_wait", time.gather_wait},
                         {"reduce_wait", time.reduce_wait},    {"offload_wait", time.offload_wait},
                         {"optimizer", time.optimizer},        {"tokens_per_second", time.tokens_per_second},
                         {"mfu", time.model_flops_utilization}};
  for (const auto& [axis, seconds] : time.busy_by_axis) object["busy_by_axis"][axis] = seconds;
  return object;
}

ordered_json json_of(const LayoutOption& option) {
  return {{"settings", option.settings},       {"changes", option.changes},
          {"is_given", option.is_given},       {"peak_bytes", option.peak_bytes},
          {"peak_moment", option.peak_moment}, {"left_bytes", std::llround(option.left_bytes)},
          {"time", json_of(option.time)}};
}

ordered_json json_of(const std::vector<LayoutOption>& options) {
  ordered_json list = ordered_json::array();
  for (const LayoutOption& option : options) list.push_back(json_of(option));
  return list;
}

}  // namespace

std::string plan_text(const Plan& plan) {
  return head_text(plan) + memory_text(plan) + traffic_text(plan) + time_text(plan);
}

std::string search_text(const LayoutSearch& search, int64_t most) {
  const auto shown = [most](size_t count) { return most == 0 ? count : std::min(count, static_cast<size_t>(most)); };
  std::string text = fmt::format("\n{} ways to run it fit, the fastest first\n", search.fit.size());
  text += "    step          left  options\n";
  for (size_t i = 0; i < shown(search.fit.size()); ++i) {
    const LayoutOption& option = search.fit[i];
    text += fmt::format("  {:>9}  {:>10} {}\n", seconds_text(option.time.step_seconds), size_text(option.left_bytes),
                        options_text(option));
  }
  if (shown(search.fit.size()) < search.fit.size())
    text += fmt::format("  ... and {} more (--top 0 shows all)\n", search.fit.size() - shown(search.fit.size()));
  if (!search.too_large.empty()) {
    text += fmt::format("\n{} need more memory than there is\n    too much       at the\n", search.too_large.size());
    for (size_t i = 0; i < shown(search.too_large.size()); ++i) {
      const LayoutOption& option = search.too_large[i];
      text += fmt::format("  {:>10}  {}:{}\n", size_text(-option.left_bytes), option.peak_moment, options_text(option));
    }
    if (shown(search.too_large.size()) < search.too_large.size())
      text += fmt::format("  ... and {} more\n", search.too_large.size() - shown(search.too_large.size()));
  }
  if (!search.refused.empty()) text += "\ndegrees that do not suit\n";
  for (const std::string& reason : search.refused) text += "  " + reason + "\n";
  return text;
}

std::string plan_json(const Plan& plan, const std::optional<LayoutSearch>& search,
                      const std::optional<Replay>& replay) {
  const CheckedJob& job = plan.job;
  ordered_json classes = ordered_json::array(), traffic = ordered_json::array();
  for (const RankClass& one : plan.classes) classes.push_back(json_of(plan, one));
  for (const auto& [key, sent] : plan.busiest.traffic)
    traffic.push_back({{"axis", key.first}, {"operation", key.second}, {"calls", sent.calls}, {"bytes", sent.bytes}});
  ordered_json degrees;
  for (Axis axis : {Axis::replica, Axis::shard, Axis::expert_replica, Axis::expert_shard, Axis::expert})
    degrees[name_of(axis)] = job.layout.degree(axis);
  ordered_json object = {{"world_size", job.layout.world_size()},
                         {"degrees", degrees},
                         {"parameters", plan.parameters},
                         {"parameters_per_token", plan.parameters_per_token},
                         {"parameters_of_rank", plan.parameters_of_rank},
                         {"compute", precision_of(plan)},
                         {"micro_steps", job.micro_steps},
                         {"tokens_per_step", job.tokens_per_step()},
                         {"device",
                          {{"name", plan.device_name},
                           {"bytes", std::llround(plan.device.memory.bytes)},
                           {"usable_bytes", std::llround(plan.device.usable_bytes())}}},
                         {"fits", plan.fits()},
                         {"left_bytes", std::llround(plan.left_bytes())},
                         {"classes", classes},
                         {"worst_routing", json_of(plan, plan.worst)},
                         {"validation_peak_bytes", plan.evaluation.peak_of.total},
                         {"traffic", traffic},
                         {"time", json_of(plan.busiest.time)},
                         {"assumptions", assumptions_of(plan)}};
  if (search)
    object["search"] = {
        {"fit", json_of(search->fit)}, {"too_large", json_of(search->too_large)}, {"refused", search->refused}};
  if (replay) object["routing"] = replay_json(*replay, plan.device);
  return object.dump(2) + "\n";
}

}  // namespace conclave

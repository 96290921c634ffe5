#include "config/job_check.h"

#include <optional>
#include <system_error>

#include "base/error.h"
#include "base/shown_path.h"
#include "config/field_values.h"
#include "config/fields.h"
#include "config/job_difference.h"

namespace conclave {
namespace {

struct RuleChecker {
  const Job& job;
  std::vector<std::string> mistakes;

  void section(const char*, const char*) {}

  template <class T, class Rule>
  void field(const char* key, const T& value, const Rule& rule, const char*) {
    const std::string refusal = check_value(value, rule);
    if (refusal.empty()) return;
    mistakes.push_back(
        mistake(fmt::format("{} is {}{}", key, print_value(value, rule), refusal), "", job.origins.of(key)));
  }
};

// A path or an optional value, and whether it is there.
struct PresenceFinder {
  std::string_view wanted;
  std::optional<bool> given;
  const char* help = "";

  void section(const char*, const char*) {}

  template <class T, class Rule>
  void field(const char* key, const T& value, const Rule&, const char* meaning) {
    if (key != wanted) return;
    help = meaning;
    if constexpr (IsOptional<T>::value) {
      given = value.has_value();
    } else if constexpr (std::is_same_v<T, std::filesystem::path>) {
      given = !value.empty();
    }
  }
};

std::optional<std::string> mistake_in_batch_size(const Job& job, int world_size) {
  if (!job.data.global_batch_size) return std::nullopt;
  const int64_t wanted = *job.data.global_batch_size;
  const int64_t at_once = job.data.micro_batch_size * world_size;
  if (wanted % at_once == 0) return std::nullopt;
  const int64_t below = wanted / at_once * at_once;
  const std::string nearest = below > 0 ? fmt::format("{} or {}", below, below + at_once) : fmt::format("{}", at_once);
  const std::string ranks = world_size == 1 ? "each rank" : fmt::format("{} ranks", world_size);
  return mistake(
      fmt::format(
          "data.global_batch_size is {}, but a micro-step of {} takes {} sequences (data.micro_batch_size is {}) and "
          "must fit a whole number of times.",
          wanted, ranks, at_once, job.data.micro_batch_size),
      fmt::format("Use {}.", nearest), job.origins.of("data.global_batch_size"));
}

std::string default_note(const Job& job, const char* key) {
  return job.origins.of(key).empty() ? " (the default)" : "";
}

}  // namespace

std::vector<std::string> mistakes_between_keys(const Job& job, const std::function<bool(std::string_view)>& known) {
  std::vector<std::string> mistakes;
  // `keys`: what the rule looks at; the place of the first that was given stands in the message.
  const auto refuse_if = [&](bool broken, const std::vector<const char*>& keys, const std::string& problem,
                             const std::string& remedy) {
    std::string place;
    for (const char* key : keys) {
      if (!known(key)) return;
      if (place.empty()) place = job.origins.of(key);
    }
    if (broken) mistakes.push_back(mistake(problem, remedy, place));
  };
  const ScheduleConfig& schedule = job.schedule;
  const double lr = job.optimizer.lr;

  refuse_if(schedule.warmup_steps > job.run.steps, {"schedule.warmup_steps", "run.steps"},
            fmt::format("schedule.warmup_steps is {}, but run.steps is {}{}: the warm-up would not end.",
                        schedule.warmup_steps, job.run.steps, default_note(job, "run.steps")),
            fmt::format("Use at most {} warm-up steps, or more steps.", job.run.steps));
  refuse_if(
      schedule.kind != ScheduleKind::constant && schedule.min_lr > lr,
      {"schedule.min_lr", "optimizer.lr", "schedule.kind"},
      fmt::format("schedule.min_lr is {}{}, but optimizer.lr is {}{}, and the learning rate falls from lr to min_lr.",
                  schedule.min_lr, default_note(job, "schedule.min_lr"), lr, default_note(job, "optimizer.lr")),
      fmt::format("Set schedule.min_lr to at most {}, for example {:.3g} (a tenth of lr) or 0.", lr, lr / 10));
  refuse_if(
      job.memory.activation_offloading && job.memory.activation_checkpointing == ActivationCheckpointing::none,
      {"memory.activation_offloading", "memory.activation_checkpointing"},
      "memory.activation_offloading is true, but memory.activation_checkpointing is none, and only the kept inputs of "
      "recomputed layers are offloaded.",
      "Set memory.activation_checkpointing to full or selective, or memory.activation_offloading to false.");
  refuse_if(
      job.memory.offload_folder && !job.memory.activation_offloading,
      {"memory.offload_folder", "memory.activation_offloading"},
      fmt::format("memory.offload_folder is {}, but memory.activation_offloading is false, which does not use it.",
                  job.memory.offload_folder.value_or("").string()),
      "Set memory.offload_folder to null, or memory.activation_offloading to true.");
  const ModelSource& model = job.model;
  refuse_if(model.init_from && model.upcycle_from, {"model.upcycle_from", "model.init_from"},
            fmt::format("model.init_from is {} and model.upcycle_from is {}, but a run starts from one of them.",
                        model.init_from.value_or("").string(), model.upcycle_from.value_or("").string()),
            "Give init_from a folder of the same model, or upcycle_from one of a dense model.");
  const auto refuse_without_dense_model = [&](const char* key, double value) {
    refuse_if(value != 0 && !model.upcycle_from, {key, "model.upcycle_from"},
              fmt::format("{} is {}, but there is no model.upcycle_from, and without it nothing uses it.", key, value),
              fmt::format("Give model.upcycle_from, or set {} to 0.", key));
  };
  refuse_without_dense_model("model.upcycle_noise", model.upcycle_noise);
  refuse_without_dense_model("model.upcycle_reinit_fraction", model.upcycle_reinit_fraction);
  refuse_if(model.resize_vocabulary && !model.init_from && !model.upcycle_from,
            {"model.resize_vocabulary", "model.init_from", "model.upcycle_from"},
            fmt::format("model.resize_vocabulary is {}, but there is neither model.init_from nor model.upcycle_from.",
                        model.resize_vocabulary.value_or(0)),
            "Set vocab_size in model.config, or give the folder whose vocabulary is to be resized.");
  refuse_if(model.shrink_vocabulary && !model.resize_vocabulary, {"model.shrink_vocabulary", "model.resize_vocabulary"},
            "model.shrink_vocabulary is true, but there is no model.resize_vocabulary, and without it nothing uses it.",
            "Give model.resize_vocabulary, or set model.shrink_vocabulary to false.");
  const MoeConfig& moe = job.moe;
  // A key that only one balancing rule uses, given beside another rule.
  const auto refuse_unless_rule = [&](LoadBalancing rule, const char* rule_word, const char* key, bool given,
                                      const std::string& value, const char* neutral) {
    refuse_if(given && moe.moe_load_balancing != rule, {key, "moe.moe_load_balancing"},
              fmt::format("{} is {}, but moe.moe_load_balancing is {}, which does not use it.", key, value,
                          values_of(job).at("moe.moe_load_balancing")),
              fmt::format("Set {} to {}, or moe.moe_load_balancing to {}.", key, neutral, rule_word));
  };
  const MoeConfig defaults;
  refuse_unless_rule(LoadBalancing::aux_loss, "aux_loss", "moe.moe_aux_loss_coeff",
                     moe.moe_aux_loss_coeff.value_or(0) > 0, fmt::format("{}", moe.moe_aux_loss_coeff.value_or(0)),
                     "null");
  refuse_unless_rule(LoadBalancing::aux_loss, "aux_loss", "moe.aux_loss_scope",
                     moe.aux_loss_scope != defaults.aux_loss_scope, "rank", "all_ranks");
  refuse_unless_rule(LoadBalancing::aux_loss, "aux_loss", "moe.aux_loss_layers",
                     moe.aux_loss_layers == AuxLossRows::each, "each", "null");
  refuse_unless_rule(LoadBalancing::sinkhorn, "sinkhorn", "moe.sinkhorn_tolerance",
                     moe.sinkhorn_tolerance != defaults.sinkhorn_tolerance, fmt::format("{}", moe.sinkhorn_tolerance),
                     "its default, 0.01");
  refuse_unless_rule(LoadBalancing::sinkhorn, "sinkhorn", "moe.sinkhorn_iterations",
                     moe.sinkhorn_iterations != defaults.sinkhorn_iterations,
                     fmt::format("{}", moe.sinkhorn_iterations), "its default, 50");
  refuse_unless_rule(LoadBalancing::bias, "bias", "moe.bias_update_rate",
                     moe.bias_update_rate != defaults.bias_update_rate, fmt::format("{}", moe.bias_update_rate),
                     "its default, 0.001");
  refuse_if(moe.drop_policy && !moe.capacity_factor, {"moe.drop_policy", "moe.capacity_factor"},
            fmt::format("moe.drop_policy is {}, but moe.capacity_factor is null: no token is dropped.",
                        values_of(job).at("moe.drop_policy")),
            "Set moe.drop_policy to null, or give moe.capacity_factor, for example 1.25.");
  // A key that only one answer to overload uses, given beside another. Null can become spill.
  const bool may_spill = moe.dispatcher == DispatcherKind::all_to_all && moe.dispatch_chunks.value_or(1) == 1;
  const OverloadPolicy overload = moe.overload.value_or(may_spill ? OverloadPolicy::spill : OverloadPolicy::none);
  const auto refuse_unless_overload = [&](OverloadPolicy policy, const char* word, const char* key, bool given,
                                          const char* neutral) {
    refuse_if(given && overload != policy, {key, "moe.overload"},
              fmt::format("{} is {}, but moe.overload is {}, which does not use it.", key, values_of(job).at(key),
                          values_of(job).at("moe.overload")),
              fmt::format("Set {} to its default, {}, or moe.overload to {}.", key, neutral, word));
  };
  refuse_unless_overload(OverloadPolicy::chunk, "chunk", "moe.max_tokens_per_rank_factor",
                         moe.max_tokens_per_rank_factor != defaults.max_tokens_per_rank_factor, "1.5");
  refuse_unless_overload(OverloadPolicy::spill, "spill", "moe.spill_threshold",
                         moe.spill_threshold != defaults.spill_threshold, "1.3");
  refuse_unless_overload(OverloadPolicy::spill, "spill", "moe.spill_least_rows", moe.spill_least_rows.has_value(),
                         "null");
  refuse_if(overload != OverloadPolicy::none && moe.dispatcher == DispatcherKind::all_gather,
            {"moe.overload", "moe.dispatcher"},
            fmt::format("moe.overload is {}, but moe.dispatcher is all_gather, with which every rank gets all tokens.",
                        values_of(job).at("moe.overload")),
            "Set moe.dispatcher to all_to_all, or moe.overload to none.");
  refuse_if(overload != OverloadPolicy::none && moe.dispatch_chunks.value_or(1) > 1,
            {"moe.dispatch_chunks", "moe.overload"},
            fmt::format("moe.dispatch_chunks is {}, but moe.overload is {}, which divides a layer's work by itself.",
                        moe.dispatch_chunks.value_or(1), values_of(job).at("moe.overload")),
            "Set moe.dispatch_chunks to 1 or null, or moe.overload to none.");
  const bool fp8 = job.precision.experts == ExpertPrecision::fp8;
  refuse_if(fp8 && job.precision.compute == Precision::fp32, {"precision.experts", "precision.compute"},
            "precision.experts is fp8, but precision.compute is fp32, and fp8 products begin and end in bf16.",
            "Set precision.compute to bf16 or auto, or precision.experts to compute.");
  refuse_if(fp8 && job.run.device == WantedDevice::cpu, {"precision.experts", "run.device"},
            "precision.experts is fp8, but run.device is cpu, and no CPU has fp8 products.",
            "Set precision.experts to compute, or run on an H100 or H200.");
  refuse_if(job.validation.every > 0 && !job.data.validation, {"validation.every", "data.validation"},
            fmt::format("validation.every is {}, but there is no data.validation.", job.validation.every),
            "Give data.validation, the prefix of a .bin/.idx pair, or set validation.every to 0.");
  // A path may be gone when a run that went on from it is started again (run/resume_choice.h); a word never was one.
  const std::string& resume = job.checkpoint.resume;
  std::error_code unreadable;
  refuse_if(resume != "auto" && resume != "never" && resume.find('/') == std::string::npos &&
                !std::filesystem::is_directory(resume, unreadable),
            {"checkpoint.resume"},
            fmt::format("checkpoint.resume is {}, but there is no such folder.", shown_path(resume)),
            "Use auto, never or the path of a checkpoint folder.");
  if (known("checkpoint.allow_changed")) {
    if (const std::string mistake = mistake_in_allowed_keys(job); !mistake.empty()) mistakes.push_back(mistake);
  }
  refuse_if(
      job.parallel.elastic && !job.data.global_batch_size, {"parallel.elastic", "data.global_batch_size"},
      "parallel.elastic is true, but there is no data.global_batch_size: a step would mean something else on each "
      "number of ranks.",
      "Give data.global_batch_size, the sequences of a step over all ranks.");
  if (known("data.global_batch_size") && known("data.micro_batch_size")) {
    if (const auto mistake = mistake_in_batch_size(job, 1)) mistakes.push_back(*mistake);
  }
  return mistakes;
}

void validate_job(const Job& job) {
  RuleChecker checker{job, {}};
  describe(job, checker);
  refuse_if_any(checker.mistakes);
  refuse_if_any(mistakes_between_keys(job, [](std::string_view) { return true; }));
}

void require(const Job& job, std::string_view key) {
  PresenceFinder finder{key, std::nullopt};
  describe(job, finder);
  check_invariant(finder.given.has_value(), "{} is a path or an optional key of the job", key);
  if (*finder.given) return;
  throw UserError(mistake(fmt::format("{} is missing, and this command needs it: {}.", key, finder.help),
                          fmt::format("Add it to the job file, or give --set {}=...", key), ""));
}

int64_t micro_steps_per_step(const Job& job, int world_size) {
  check_invariant(world_size >= 1, "world size ({}) >= 1", world_size);
  if (const auto mistake = mistake_in_batch_size(job, world_size)) throw UserError(*mistake);
  if (!job.data.global_batch_size) return 1;
  return *job.data.global_batch_size / (job.data.micro_batch_size * world_size);
}

}  // namespace conclave

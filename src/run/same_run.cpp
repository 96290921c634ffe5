#include "run/same_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "config/job_file.h"
#include "families/family.h"
#include "optim/learning_rate.h"

namespace conclave {
namespace {

// With the keys and the form that today's program gives a config: an older one may have written others.
std::string in_todays_form(const std::string& model_config) {
  try {
    return hugging_face_config_json(parse_model_config(model_config, "the checkpoint's model"), "float32");
  } catch (const UserError&) {
    return model_config;
  }
}

KeyValues with_model(KeyValues values, const std::string& model_config) {
  values.merge(values_of_model(model_config));
  return values;
}

// Of the weights that an adapter was trained beside.
constexpr const char* key_base_weights = "model.init_from: fingerprint of the weights";

// The part before ":" of "model.config: hidden_size" is what checkpoint.allow_changed can name.
std::string key_of(const Difference& difference) {
  return difference.key.substr(0, difference.key.find(':'));
}

bool contains(const std::vector<std::string>& list, const std::string& text) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

std::string in_words(const Difference& difference) {
  return fmt::format("{} is {}, was {}", difference.key, difference.is, difference.was);
}

constexpr const char* schedule_keys[] = {"optimizer.lr", "run.steps", "schedule.kind", "schedule.warmup_steps",
                                         "schedule.min_lr"};

// Of a step of the job with these values.
double learning_rate_of(const KeyValues& values, int64_t step) {
  std::vector<std::string> overrides;
  for (const char* key : schedule_keys)
    if (const auto found = values.find(key); found != values.end())
      overrides.push_back(fmt::format("{}={}", key, found->second));
  const Job job = job_from_overrides(overrides);
  return learning_rate(job.schedule, job.optimizer.lr, job.run.steps, step);
}

// The learning rate is a function of the step: another schedule goes on at its own value, wherever the old one ended.
std::optional<std::string> jump_of_learning_rate(const std::vector<Difference>& differences, const KeyValues& is,
                                                 const KeyValues& was, int64_t step) {
  const bool changed = std::any_of(differences.begin(), differences.end(), [](const Difference& difference) {
    return std::find(std::begin(schedule_keys), std::end(schedule_keys), difference.key) != std::end(schedule_keys);
  });
  if (!changed || step == 0) return std::nullopt;
  const double before = learning_rate_of(was, step);
  const double after = learning_rate_of(is, step + 1);
  const double ratio = after / before;
  if (std::isfinite(ratio) && std::abs(ratio - 1) < 0.01) return std::nullopt;
  return fmt::format("the learning rate jumps from {:.4g} (step {}) to {:.4g} (step {})", before, step, after,
                     step + 1);
}

// What moe.drop_policy: null stands for.
void name_drop_policy(KeyValues& values) {
  std::string& policy = values["moe.drop_policy"];
  if (policy == "null" && values["moe.capacity_factor"] != "null") policy = "probability";
}

// A checkpoint's values, with what keys were that it is older than.
KeyValues stored_values(KeyValues values) {
  values.try_emplace("precision.router", "compute");
  name_drop_policy(values);
  return values;
}

// What spans the tokens of a micro-step means something else when that has another number of them.
std::optional<std::string> change_of_micro_step(const CheckedJob& job, const CheckpointState& state) {
  const auto before = state.layout.find(layout_key_micro_step);
  if (before == state.layout.end() || before->second == job.sequences_per_micro_step()) return std::nullopt;
  const char* what = nullptr;
  if (job.aux_coefficient() > 0) what = "the balancing loss";
  if (job.job.moe.moe_load_balancing == LoadBalancing::sinkhorn) what = "sinkhorn's choice of experts";
  if (job.job.moe.capacity_factor) what = "an expert's capacity";
  if (what == nullptr) return std::nullopt;
  return fmt::format(
      "a micro-step has {} sequences now, and had {}: {}, which spans one, is of another number of tokens. "
      "data.micro_batch_size x ranks of {} would keep it.",
      job.sequences_per_micro_step(), before->second, what, before->second);
}

}  // namespace

RunIdentity identity_of(const CheckedJob& job, const std::string& compute, const std::string& data_fingerprint) {
  KeyValues values = values_of(job.job);
  values["data.global_batch_size"] = std::to_string(job.sequences_per_step());
  values["precision.compute"] = compute;
  values["moe.moe_aux_loss_coeff"] = fmt::format("{}", job.aux_coefficient());
  values["moe.router_jitter_noise"] = fmt::format("{}", job.jitter_noise());
  name_drop_policy(values);
  if (job.aux_coefficient() == 0) values["moe.aux_loss_layers"] = "together";  // of no loss
  if (compute == "fp32") values["precision.router"] = "compute";               // which is fp32
  if (!job.base_fingerprint.empty()) values[key_base_weights] = job.base_fingerprint;
  return {std::move(values), hugging_face_config_json(job.model, "float32"), data_fingerprint};
}

std::vector<std::string> check_same_run(const CheckedJob& job, const RunIdentity& identity,
                                        const CheckpointState& state, const std::filesystem::path& checkpoint) {
  // An imported checkpoint is of a model alone: of no job and no data yet.
  const KeyValues was = state.job.empty() ? identity.values : stored_values(state.job);
  std::vector<Difference> differences = differences_that_matter(with_model(identity.values, identity.model_config),
                                                                with_model(was, in_todays_form(state.model_config)));
  if (!state.data_fingerprint.empty() && state.data_fingerprint != identity.data_fingerprint)
    differences.push_back(
        {"data.train",
         fmt::format("{} with fingerprint {}", prefixes_of(job.job.data.train.sets), identity.data_fingerprint),
         fmt::format("data with fingerprint {}", state.data_fingerprint)});

  const std::vector<std::string> allowed = keys_allowed_to_change(job.job);
  std::vector<std::string> said, keys = allowed;
  std::string shown;
  for (const Difference& difference : differences) {
    const std::string key = key_of(difference);
    if (contains(allowed, key)) {
      said.push_back("going on with a change that checkpoint.allow_changed allows: " + in_words(difference));
    } else if (!contains(keys, key)) {
      keys.push_back(key);
    }
    shown += fmt::format("\n         {}{}", in_words(difference), contains(allowed, key) ? " (allowed)" : "");
  }
  const auto jump = jump_of_learning_rate(differences, identity.values, was, state.step);
  if (keys.size() > allowed.size())
    user_error(
        "settings differ from the run that wrote {}:{}{}\n       Set them back, use another run.output_dir, or go on "
        "all the same with --set checkpoint.allow_changed={}",
        checkpoint.string(), shown, jump ? fmt::format("\n       Going on all the same, {}.", *jump) : "",
        fmt::join(keys, ","));
  if (jump) said.push_back(*jump + ", for it follows from the step and the changed keys alone");
  if (const auto change = change_of_micro_step(job, state)) said.push_back(*change);
  return said;
}

std::string how_to_train_on(const Job& job) {
  if (job.schedule.kind == ScheduleKind::constant) return "raise run.steps to train on";
  std::vector<std::string> keys = keys_allowed_to_change(job);
  if (!contains(keys, "run.steps")) keys.push_back("run.steps");
  return fmt::format(
      "to train on, raise run.steps and allow that change, for the fall of the learning rate ends with it: --set "
      "run.steps={} --set checkpoint.allow_changed={}",
      2 * job.run.steps, fmt::join(keys, ","));
}

}  // namespace conclave

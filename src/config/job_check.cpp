#include "config/job_check.h"

#include <fmt/format.h>

#include "base/error.h"
#include "config/fields.h"
#include "config/job_difference.h"
#include "config/key_rules.h"

namespace conclave {
namespace {

std::string default_note(const Job& job, const char* key) {
  return job.origins.of(key).empty() ? " (the default)" : "";
}

void check_between_sections(const Job& job, KeyRules& rules) {
  const ScheduleConfig& schedule = job.schedule;
  const double lr = job.optimizer.lr;
  rules.refuse_if(schedule.warmup_steps > job.run.steps, {"schedule.warmup_steps", "run.steps"},
                  fmt::format("schedule.warmup_steps is {}, but run.steps is {}{}: the warm-up would not end.",
                              schedule.warmup_steps, job.run.steps, default_note(job, "run.steps")),
                  fmt::format("Use at most {} warm-up steps, or more steps.", job.run.steps));
  rules.refuse_if(
      schedule.kind != ScheduleKind::constant && schedule.min_lr > lr,
      {"schedule.min_lr", "optimizer.lr", "schedule.kind"},
      fmt::format("schedule.min_lr is {}{}, but optimizer.lr is {}{}, and the learning rate falls from lr to min_lr.",
                  schedule.min_lr, default_note(job, "schedule.min_lr"), lr, default_note(job, "optimizer.lr")),
      fmt::format("Set schedule.min_lr to at most {}, for example {:.3g} (a tenth of lr) or 0.", lr, lr / 10));
  rules.refuse_if(job.precision.experts == ExpertPrecision::fp8 && job.run.device == WantedDevice::cpu,
                  {"precision.experts", "run.device"},
                  "precision.experts is fp8, but run.device is cpu, and no CPU has fp8 products.",
                  "Set precision.experts to compute, or run on an H100 or H200.");
  rules.refuse_if(job.validation.every > 0 && !job.data.validation, {"validation.every", "data.validation"},
                  fmt::format("validation.every is {}, but there is no data.validation.", job.validation.every),
                  "Give data.validation, the prefix of a .bin/.idx pair, or set validation.every to 0.");
  rules.refuse_if(
      job.validation.prompts && !job.validation.tokenizer && !job.model.init_from && !job.model.upcycle_from,
      {"validation.prompts", "validation.tokenizer"},
      "validation.prompts are texts, but there is no tokenizer for them.",
      "Set validation.tokenizer to the folder of the tokenizer that made the token files.");
  if (rules.know({"checkpoint.allow_changed"})) {
    if (const std::string mistake = mistake_in_allowed_keys(job); !mistake.empty()) rules.mistakes.push_back(mistake);
  }
  rules.refuse_if(
      job.parallel.elastic && !job.data.global_batch_size, {"parallel.elastic", "data.global_batch_size"},
      "parallel.elastic is true, but there is no data.global_batch_size: a step would mean something else on each "
      "number of ranks.",
      "Give data.global_batch_size, the sequences of a step over all ranks.");
}

}  // namespace

std::vector<std::string> mistakes_between_keys(const Job& job, const std::function<bool(std::string_view)>& known) {
  KeyRules rules(job.origins, known);
  check(job.model, rules);
  check(job.adapter, rules);
  check(job.data, rules);
  check(job.memory, rules);
  check(job.moe, rules);
  check(job.precision, rules);
  check(job.checkpoint, rules);
  check(job.validation, rules);
  check_between_sections(job, rules);
  return rules.mistakes;
}

void require(Job job, std::string_view key) {
  const Fields fields = fields_of(job);
  const Field& field = fields.at(key);
  check_invariant(field.may_be_null(), "{} is a path or an optional key of the job", key);
  if (field.is_given()) return;
  throw UserError(mistake(fmt::format("{} is missing, and this command needs it: {}.", key, field.help()),
                          fmt::format("Add it to the job file, or give --set {}=...", key), ""));
}

int64_t micro_steps_per_step(const Job& job, int world_size) {
  check_invariant(world_size >= 1, "world size ({}) >= 1", world_size);
  const std::string place = job.origins.of("data.global_batch_size");
  if (const std::string mistake = mistake_in_batch_size(job.data, world_size, place); !mistake.empty())
    throw UserError(mistake);
  if (!job.data.global_batch_size) return 1;
  return *job.data.global_batch_size / (job.data.micro_batch_size * world_size);
}

}  // namespace conclave

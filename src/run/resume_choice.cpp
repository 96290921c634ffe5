#include "run/resume_choice.h"

#include <algorithm>
#include <system_error>

#include "base/error.h"
#include "base/log.h"
#include "base/shown_path.h"
#include "checkpoint/checkpoint_folder.h"
#include "config/job_file.h"
#include "config/mistake.h"
#include "run/run_folder.h"
#include "run/same_run.h"

namespace conclave {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse(const Job& job, const std::string& problem, const std::string& remedy) {
  throw UserError(mistake(fmt::format("checkpoint.resume is {}, but {}.", shown_path(job.checkpoint.resume), problem),
                          remedy, job.origins.of("checkpoint.resume")));
}

// A run's folder was probably meant as its newest checkpoint.
[[noreturn]] void refuse_no_checkpoint(const Job& job, const fs::path& path) {
  for (const fs::path& folder : {path, path / "checkpoints"})
    if (const auto newest = newest_checkpoint(folder))
      refuse(job, "that is a folder of checkpoints", fmt::format("Its newest one is {}.", newest->string()));
  refuse(job, fmt::format("there is no checkpoint: it has no {}", manifest_file_name),
         "Use auto, never or the path of a checkpoint folder.");
}

// The identity of the checkpoint to go back to; none: its folder is gone.
std::optional<std::string> checkpoint_identity(const Job& job, const fs::path& path) {
  std::error_code unreadable;
  if (!fs::is_directory(path, unreadable)) return std::nullopt;
  if (!fs::exists(path / manifest_file_name, unreadable)) refuse_no_checkpoint(job, path);
  return CheckpointReader(path).manifest().identity;
}

// The run's whole checkpoints that come from the one at `path`, the newest first.
std::vector<fs::path> descendants(const Job& job, const fs::path& path) {
  const std::optional<std::string> identity = checkpoint_identity(job, path);
  std::vector<fs::path> found;
  for (const fs::path& own : checkpoints_to_try(checkpoints_folder(job))) {
    if (damage_of(own)) continue;
    const CheckpointReader reader(own);
    const CheckpointState& state = reader.state();
    // Once the checkpoint at `path` is gone (checkpoint.keep of its run), the job is known by what it says.
    const auto said = state.job.find("checkpoint.resume");
    const bool same_words = said != state.job.end() && said->second == values_of(job).at("checkpoint.resume");
    if (!state.resumed_from.empty() && (identity ? state.resumed_from == *identity : same_words)) found.push_back(own);
  }
  return found;
}

ResumeChoice choose_from_path(const Job& job, const fs::path& path) {
  std::vector<fs::path> candidates = descendants(job, path);
  std::error_code unreadable;
  const bool is_there = fs::is_directory(path, unreadable);
  if (candidates.empty() && !is_there)
    refuse(job, "there is no such folder", "Use auto, never or the path of a checkpoint folder.");
  if (is_there) candidates.push_back(path);
  return {candidates, candidates.size() > 1 && job.checkpoint.on_damage == OnDamage::fall_back};
}

}  // namespace

std::optional<fs::path> path_to_resume(const Job& job) {
  const std::string& resume = job.checkpoint.resume;
  return resume == "auto" || resume == "never" ? std::nullopt : std::optional<fs::path>(resume);
}

ResumeChoice choose_resume(const Job& job) {
  if (const auto path = path_to_resume(job)) return choose_from_path(job, *path);
  const fs::path folder = checkpoints_folder(job);
  if (job.checkpoint.resume == "auto")
    return {checkpoints_to_try(folder), job.checkpoint.on_damage == OnDamage::fall_back};
  if (!list_checkpoints(folder).empty())
    user_error(
        "checkpoint.resume is never, but {} holds checkpoints of an earlier run, which this one would mix with its "
        "own. Use another "
        "run.output_dir, or checkpoint.resume: auto to go on with that run.",
        folder.string());
  return {};
}

void take_over_from_run(Job& job) {
  if (job.moe.aux_loss_layers || job.moe.moe_load_balancing != LoadBalancing::aux_loss) return;
  for (const fs::path& candidate : choose_resume(job).candidates) {
    if (damage_of(candidate)) continue;
    const KeyValues values = CheckpointReader(candidate).state().job;
    if (const auto found = values.find("moe.aux_loss_layers"); found != values.end())
      job.moe.aux_loss_layers = job_from_overrides({"moe.aux_loss_layers=" + found->second}).moe.aux_loss_layers;
    return;
  }
}

void check_resume(const CheckedJob& job, const std::optional<std::string>& data_fingerprint) {
  const ResumeChoice choice = choose_resume(job.job);
  for (const fs::path& candidate : choice.candidates) {
    if (choice.may_fall_back && candidate != choice.candidates.back()) {
      if (const auto damage = damage_of(candidate)) {
        spdlog::warn("Passing over {}: {}", candidate.filename().string(), *damage);
        continue;
      }
    }
    const CheckpointReader reader(candidate);
    const CheckpointState& state = reader.state();
    // What `auto` stands for is known where the run computes.
    std::string compute = values_of(job.job).at("precision.compute");
    if (const auto was = state.job.find("precision.compute");
        job.job.precision.compute == Precision::automatic && was != state.job.end())
      compute = was->second;
    const RunIdentity identity = identity_of(job, compute, data_fingerprint.value_or(state.data_fingerprint));
    for (const std::string& line : check_same_run(job, identity, state, candidate)) spdlog::warn(line);
    return;
  }
}

std::string origin_after(const Job& job, const fs::path& loaded, const Manifest& manifest) {
  const auto path = path_to_resume(job);
  if (!path) return "";
  return loaded == *path ? manifest.identity : manifest.state.resumed_from;
}

}  // namespace conclave

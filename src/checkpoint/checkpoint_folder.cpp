#include "checkpoint/checkpoint_folder.h"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/text_file.h"
#include "checkpoint/checkpoint_reader.h"
#include "checkpoint/file.h"

namespace conclave {
namespace {

constexpr std::string_view step_prefix = "step-";
constexpr std::string_view unfinished_prefix = ".tmp-";
constexpr std::string_view abandoned_prefix = "abandoned-";

}  // namespace

std::string checkpoint_name(int64_t step) {
  return fmt::format("{}{:08}", step_prefix, step);
}

std::optional<int64_t> step_of_checkpoint(const std::string& name) {
  if (!name.starts_with(step_prefix)) return std::nullopt;
  int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + step_prefix.size(), end, step);
  if (error != std::errc() || stop != end || checkpoint_name(step) != name) return std::nullopt;
  return step;
}

std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& folder) {
  std::vector<std::pair<int64_t, std::filesystem::path>> found;
  if (is_folder(folder)) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const std::optional<int64_t> step = step_of_checkpoint(entry.path().filename().string());
      if (step && entry.is_directory()) found.emplace_back(*step, entry.path());
    }
  }
  std::sort(found.begin(), found.end());
  std::vector<std::filesystem::path> paths;
  paths.reserve(found.size());
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

std::optional<std::filesystem::path> named_by_latest(const std::filesystem::path& folder) {
  const std::filesystem::path latest = folder / latest_file_name;
  std::error_code unreadable;
  if (!std::filesystem::exists(latest, unreadable) && !unreadable) return std::nullopt;
  std::string name;
  try {
    name = read_text_file(latest, 256);
  } catch (const UserError& error) {
    spdlog::warn("{}", error.what());
    return std::nullopt;
  }
  while (!name.empty() && name.back() == '\n') name.pop_back();
  if (!step_of_checkpoint(name)) {
    spdlog::warn("{} does not name a checkpoint; looking for the newest one that is whole.", latest.string());
    return std::nullopt;
  }
  return folder / name;
}

std::optional<std::string> damage_of(const std::filesystem::path& checkpoint) {
  try {
    const CheckpointReader reader(checkpoint);
    return std::nullopt;
  } catch (const UserError& error) {
    return error.what();
  }
}

std::vector<std::filesystem::path> checkpoints_to_try(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> candidates = list_checkpoints(folder);
  std::reverse(candidates.begin(), candidates.end());
  if (const auto latest = named_by_latest(folder)) {
    const auto found = std::find(candidates.begin(), candidates.end(), *latest);
    if (found == candidates.end())
      spdlog::warn("{} names {}, which is not there.", (folder / latest_file_name).string(), latest->string());
    else
      std::rotate(candidates.begin(), found, found + 1);
  }
  return candidates;
}

std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& folder) {
  for (const std::filesystem::path& candidate : checkpoints_to_try(folder)) {
    const std::optional<std::string> damage = damage_of(candidate);
    if (!damage) return candidate;
    spdlog::warn("Passing over checkpoint {}: {}", candidate.filename().string(), *damage);
  }
  return std::nullopt;
}

std::vector<std::filesystem::path> checkpoints_to_prune(const std::filesystem::path& folder, Retention retention) {
  check_invariant(retention.newest >= 1, "{} checkpoints are kept, at least 1", retention.newest);
  const std::optional<std::filesystem::path> newest = newest_checkpoint(folder);
  if (!newest) return {};
  std::vector<std::filesystem::path> checkpoints = list_checkpoints(folder);
  std::reverse(checkpoints.begin(), checkpoints.end());
  std::vector<std::filesystem::path> superfluous;
  int64_t kept = 0;
  for (const std::filesystem::path& checkpoint : checkpoints) {
    if (kept < retention.newest) {
      if (!damage_of(checkpoint)) ++kept;
      continue;
    }
    const int64_t step = *step_of_checkpoint(checkpoint.filename().string());
    if (checkpoint == *newest || (retention.every > 0 && step % retention.every == 0)) continue;
    superfluous.push_back(checkpoint);
  }
  return superfluous;
}

void prune_checkpoints(const std::filesystem::path& folder, Retention retention) {
  for (const std::filesystem::path& checkpoint : checkpoints_to_prune(folder, retention)) remove_checkpoint(checkpoint);
}

void remove_checkpoint(const std::filesystem::path& checkpoint) {
  const std::filesystem::path aside =
      checkpoint.parent_path() / (std::string(unfinished_prefix) + "removed-" + checkpoint.filename().string());
  std::filesystem::remove_all(aside);
  std::filesystem::rename(checkpoint, aside);
  std::filesystem::remove_all(aside);
}

std::filesystem::path unfinished_folder(const std::filesystem::path& folder, const std::string& name) {
  return folder / (std::string(unfinished_prefix) + name);
}

void remove_unfinished(const std::filesystem::path& folder) {
  const std::string unfinished_latest = std::string(latest_file_name) + std::string(unfinished_prefix);
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(unfinished_prefix) || name.starts_with(unfinished_latest))
      std::filesystem::remove_all(entry.path());
  }
}

void set_latest(const std::filesystem::path& folder, const std::string& name) {
  write_file_atomically(folder / latest_file_name, name + "\n");
}

void remove_latest(const std::filesystem::path& folder) {
  std::filesystem::remove(folder / latest_file_name);
}

std::vector<std::filesystem::path> list_abandoned(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.is_directory() && entry.path().filename().string().starts_with(abandoned_prefix))
      found.push_back(entry.path());
  std::sort(found.begin(), found.end());
  return found;
}

std::filesystem::path new_abandoned_folder(const std::filesystem::path& folder) {
  for (int number = 1;; ++number) {
    std::filesystem::path aside = folder / fmt::format("{}{}", abandoned_prefix, number);
    std::error_code taken;
    if (std::filesystem::exists(std::filesystem::symlink_status(aside, taken))) continue;
    if (std::filesystem::create_directory(aside)) return aside;
  }
}

}  // namespace conclave

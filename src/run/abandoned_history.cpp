#include "run/abandoned_history.h"

#include <fmt/format.h>

#include <system_error>
#include <vector>

#include "base/log.h"
#include "checkpoint/checkpoint_folder.h"
#include "run/run_export.h"
#include "run/run_folder.h"

namespace conclave {
namespace {

namespace fs = std::filesystem;

// Of a folder with entries called as checkpoints are: those after `step`.
std::vector<fs::path> entries_after(const fs::path& folder, int64_t step) {
  std::vector<fs::path> later;
  for (const fs::path& entry : list_checkpoints(folder))
    if (step_of_checkpoint(entry.filename().string()).value_or(0) > step) later.push_back(entry);
  return later;
}

// Links lead elsewhere at times (checkpoints on a larger disk): what cannot be renamed is copied.
void move(const fs::path& from, const fs::path& to_folder) {
  const fs::path to = to_folder / from.filename();
  std::error_code not_renamed;
  fs::rename(from, to, not_renamed);
  if (!not_renamed) return;
  fs::copy(from, to, fs::copy_options::recursive);
  fs::remove_all(from);
}

bool is_there(const fs::path& path) {
  std::error_code unreadable;
  return fs::exists(path, unreadable);
}

}  // namespace

bool is_own_checkpoint(const Job& job, const fs::path& checkpoint) {
  std::error_code not_there;
  return fs::equivalent(fs::canonical(checkpoint, not_there).parent_path(), checkpoints_folder(job), not_there);
}

void abandon_history_after(const Job& job, const fs::path& checkpoint, int64_t step) {
  const fs::path folder = checkpoints_folder(job);
  const bool is_own = is_own_checkpoint(job, checkpoint);
  const std::vector<fs::path> checkpoints = is_own ? entries_after(folder, step) : list_checkpoints(folder);
  if (checkpoints.empty()) {
    if (!is_own) put_metrics_aside(job);
    return;
  }
  const std::vector<fs::path> exports =
      is_own ? entries_after(exports_folder(job), step) : list_checkpoints(exports_folder(job));

  // First what decides: a start that finds this half done goes back to the same checkpoint.
  if (is_own)
    set_latest(folder, checkpoint_name(step));
  else
    remove_latest(folder);
  const fs::path aside = new_abandoned_folder(folder);
  for (const fs::path& file : {metrics_file(job), routing_file(job), resolved_job_file(job)})
    if (is_there(file)) fs::copy_file(file, aside / file.filename());
  for (const fs::path& later : checkpoints) move(later, aside);
  if (!exports.empty()) fs::create_directory(aside / "export");
  for (const fs::path& later : exports) move(later, aside / "export");
  if (!is_own) {  // nothing of it is this run's
    fs::remove(metrics_file(job));
    fs::remove(routing_file(job));
    if (is_there(tensorboard_folder(job))) move(tensorboard_folder(job), aside);
  }
  spdlog::warn(
      "going back to {}: {} {} ({} to {}) and the metrics as they were are put aside in {}. Remove that folder when "
      "nothing of it is wanted.",
      checkpoint.string(), checkpoints.size(), checkpoints.size() == 1 ? "checkpoint" : "checkpoints",
      checkpoints.front().filename().string(), checkpoints.back().filename().string(), aside.string());
}

void put_metrics_aside(const Job& job) {
  for (const fs::path& file : {metrics_file(job), routing_file(job)}) put_aside(file);
}

void put_aside(const fs::path& file) {
  if (!is_there(file) || fs::file_size(file) == 0) return;
  for (int number = 1;; ++number) {
    fs::path aside = file;
    aside += fmt::format(".{}", number);
    if (fs::exists(aside)) continue;
    fs::rename(file, aside);
    spdlog::info("{} was not written by this run; it is kept as {}", file.string(), aside.string());
    return;
  }
}

}  // namespace conclave

#include "run/output_place.h"

#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <string>
#include <system_error>

#include "base/error.h"
#include "checkpoint/checkpoint_folder.h"
#include "config/mistake.h"
#include "run/run_export.h"
#include "run/run_folder.h"
#include "run/run_lock.h"

namespace conclave {
namespace {

namespace fs = std::filesystem;

// The longest path that a run makes in its folder is about this long.
constexpr size_t room_for_names = 120;

[[noreturn]] void refuse(const Job& job, const std::string& problem) {
  throw UserError(mistake(fmt::format("run.output_dir is {}, but {}.", job.run.output_dir.string(), problem),
                          "Use a folder that can be made and written.", job.origins.of("run.output_dir")));
}

// What is at a place, following links.
fs::file_status status_of(const Job& job, const fs::path& place) {
  std::error_code error;
  const fs::file_status status = fs::status(place, error);
  if (error && status.type() != fs::file_type::not_found)
    refuse(job, fmt::format("{} cannot be examined: {}", place.string(), error.message()));
  if (status.type() == fs::file_type::not_found && fs::is_symlink(fs::symlink_status(place, error)))
    refuse(job, fmt::format("{} is a link to {}, which is not there", place.string(),
                            fs::read_symlink(place, error).string()));
  return status;
}

// A folder of its own in `parent` for as long as this lives: whether one can be made, and files in it.
class Trial {
 public:
  explicit Trial(const fs::path& parent) : folder_((parent / ".conclave-trial-XXXXXX").string()) {
    if (::mkdtemp(folder_.data()) == nullptr) {
      const int reason = errno;
      folder_.clear();
      throw std::system_error(reason, std::generic_category());
    }
  }
  ~Trial() {
    std::error_code ignored;
    if (!folder_.empty()) fs::remove_all(folder_, ignored);
  }
  Trial(const Trial&) = delete;

  // The folders of `path`, one within the other.
  void make(const fs::path& path) const { fs::create_directories(fs::path(folder_) / path); }

 private:
  std::string folder_;
};

// The part of `place` that is there, which must be a folder; what is missing goes to `missing`.
fs::path existing_part(const Job& job, const fs::path& place, fs::path& missing) {
  fs::path there = place.root_path();
  bool all_there = true;
  for (const fs::path& part : place.relative_path()) {
    if (all_there) {
      const fs::path next = there / part;
      const fs::file_status status = status_of(job, next);
      if (status.type() == fs::file_type::not_found) {
        all_there = false;
      } else if (!fs::is_directory(status)) {
        refuse(job, fmt::format("{} is {}", next.string(), next == place ? "not a folder" : "a file, not a folder"));
      } else {
        there = next;
      }
    }
    if (!all_there) missing /= part;
  }
  return there;
}

void check_writable(const Job& job, const fs::path& folder, const fs::path& missing) {
  try {
    const Trial trial(folder);
    trial.make(missing);
  } catch (const std::system_error& error) {
    const std::string what = missing.empty() ? "" : fmt::format(" (for {})", missing.string());
    refuse(job, fmt::format("nothing can be made in {}{}: {}", folder.string(), what, error.code().message()));
  }
}

// Where the run's own files and folders go, something else may be.
void check_contents(const Job& job) {
  for (const fs::path& folder : {checkpoints_folder(job), exports_folder(job), tensorboard_folder(job)}) {
    const fs::file_status status = status_of(job, folder);
    if (status.type() == fs::file_type::not_found) continue;
    if (!fs::is_directory(status)) refuse(job, fmt::format("{} is there and not a folder", folder.string()));
    check_writable(job, folder, {});
  }
  const fs::path latest = checkpoints_folder(job) / latest_file_name;  // which is never written, but replaced
  for (const fs::path& file :
       {metrics_file(job), routing_file(job), resolved_job_file(job), job.run.output_dir / lock_file_name, latest}) {
    const fs::file_status status = status_of(job, file);
    if (status.type() == fs::file_type::not_found) continue;
    if (!fs::is_regular_file(status)) refuse(job, fmt::format("{} is there and not a file", file.string()));
    if (file != latest && ::access(file.c_str(), W_OK) != 0)
      refuse(job, fmt::format("{} cannot be written: {}", file.string(), std::strerror(errno)));
  }
}

}  // namespace

void check_output_place(const Job& job) {
  const fs::path place = fs::absolute(job.run.output_dir).lexically_normal();
  const fs::path folder = place.has_filename() ? place : place.parent_path();
  if (folder.native().size() + room_for_names > PATH_MAX)
    refuse(job, fmt::format("the system's paths have at most {} characters", PATH_MAX - 1));
  fs::path missing;
  const fs::path there = existing_part(job, folder, missing);
  check_writable(job, there, missing);
  if (missing.empty()) check_contents(job);
}

}  // namespace conclave

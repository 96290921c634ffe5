#include "checkpoint/output_folder.h"

#include <algorithm>
#include <string>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "checkpoint/replace_folder.h"

namespace conclave {
namespace {

std::filesystem::path without_trailing_slash(const std::filesystem::path& folder) {
  const std::filesystem::path path = std::filesystem::absolute(folder).lexically_normal();
  return path.has_filename() ? path : path.parent_path();
}

}  // namespace

OutputFolder::OutputFolder(const std::filesystem::path& folder, Overwrite overwrite,
                           std::function<bool(std::string_view)> writes, std::vector<std::string> folders)
    : folder_(without_trailing_slash(folder)),
      aside_(folder_.parent_path() / (".tmp-" + folder_.filename().string())),
      overwrite_(overwrite),
      writes_(std::move(writes)),
      folders_(std::move(folders)) {}

void OutputFolder::check() const {
  if (!std::filesystem::exists(std::filesystem::symlink_status(folder_))) return;
  if (!std::filesystem::is_directory(folder_))
    user_error("cannot write the folder {}: something else has that name. Choose another name.", folder_.string());
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file() && writes_(name)) continue;
    if (entry.is_directory() && std::find(folders_.begin(), folders_.end(), name) != folders_.end()) continue;
    user_error(
        "cannot replace the folder {}: it holds {}, which does not belong to what is written there. Choose another "
        "folder, or remove this one.",
        folder_.string(), name);
  }
  if (overwrite_ == Overwrite::refuse)
    user_error("the folder {} is there already. Choose another one, or replace it with --overwrite.", folder_.string());
}

void OutputFolder::create() const {
  check();
  std::filesystem::remove_all(aside_);
  std::filesystem::create_directories(aside_);
}

void OutputFolder::publish() const {
  replace_folder(aside_, folder_);
}

void OutputFolder::discard() const {
  std::error_code ignored;
  std::filesystem::remove_all(aside_, ignored);
}

}  // namespace conclave

#include "checkpoint/output_folder.h"

#include <algorithm>
#include <string>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/shown_path.h"
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
  std::error_code unreadable;
  if (!std::filesystem::exists(std::filesystem::symlink_status(folder_, unreadable))) return;  // create() says why
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
  try {
    std::filesystem::remove_all(aside_);
    std::filesystem::create_directories(aside_);
  } catch (const std::filesystem::filesystem_error& error) {
    if (error.code() == std::errc::no_space_on_device)
      throw std::runtime_error(fmt::format("cannot make the folder {}: {}", folder_.string(), error.code().message()));
    user_error("cannot make the folder {}: {}. Choose a place where folders can be made.", shown_path(folder_),
               error.code().message());
  }
}

void OutputFolder::publish() const {
  replace_folder(aside_, folder_);
}

void OutputFolder::discard() const {
  std::error_code ignored;
  std::filesystem::remove_all(aside_, ignored);
}

}  // namespace conclave

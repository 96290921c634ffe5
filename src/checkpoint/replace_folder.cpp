#include "checkpoint/replace_folder.h"

#include <fcntl.h>
#include <cstdio>

#include <cerrno>
#include <system_error>

#include "base/atomic_file.h"
#include "base/error.h"

namespace conclave {

void replace_folder(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (!std::filesystem::exists(to)) {
    publish_folder(from, to);
    return;
  }
  flush_to_disk(from);
  const std::filesystem::path parent = to.has_parent_path() ? to.parent_path() : std::filesystem::path(".");
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
    flush_to_disk(parent);
    std::filesystem::remove_all(from);
    return;
  }
  if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP) {
    throw std::system_error(errno, std::generic_category(),
                            fmt::format("cannot exchange {} and {}", from.string(), to.string()));
  }
  const std::filesystem::path old = parent / (".tmp-old-" + to.filename().string());
  std::filesystem::remove_all(old);
  std::filesystem::rename(to, old);
  try {
    publish_folder(from, to);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::rename(old, to, ignored);
    throw;
  }
  std::filesystem::remove_all(old);
}

}  // namespace conclave

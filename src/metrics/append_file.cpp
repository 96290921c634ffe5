#include "metrics/append_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "base/log.h"

namespace conclave {
namespace {

// Writes all of `chunk`; returns 0 or the errno of the write that failed.
int write_all(int descriptor, std::string_view chunk) {
  while (!chunk.empty()) {
    const ssize_t written = ::write(descriptor, chunk.data(), chunk.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    if (written == 0) return EIO;
    chunk.remove_prefix(static_cast<size_t>(written));
  }
  return 0;
}

}  // namespace

AppendFile::AppendFile(std::filesystem::path path)
    : path_(std::move(path)), descriptor_(::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644)) {
  if (descriptor_ < 0) throw std::system_error(errno, std::generic_category(), "cannot open " + path_.string());
}

AppendFile::~AppendFile() {
  ::close(descriptor_);
}

bool AppendFile::append(std::string_view chunk) noexcept {
  struct stat before {};
  int error = ::fstat(descriptor_, &before) == 0 ? 0 : errno;
  if (error == 0) error = write_all(descriptor_, chunk);
  if (error == 0) return true;

  // What a short write left behind would make the next chunk unreadable. A device (no regular file) has nothing to
  // undo.
  if (S_ISREG(before.st_mode) && ::ftruncate(descriptor_, before.st_size) != 0) error = errno;
  if (dropped_++ == 0) {
    try {
      spdlog::warn("cannot write {}: {}. Training goes on; what does not fit is left out of this file.", path_.string(),
                   std::strerror(error));
    } catch (...) {  // a log that fails as well must not end the run
    }
  }
  return false;
}

}  // namespace conclave

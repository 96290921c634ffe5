#include "base/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>

#include "base/error.h"

namespace conclave {
namespace {

[[noreturn]] void fail(const char* action, const std::filesystem::path& path) {
  throw std::system_error(errno, std::generic_category(), fmt::format("cannot {} {}", action, path.string()));
}

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags) : value(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    if (value < 0) fail("open", path);
  }
  ~Descriptor() { ::close(value); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  const int value;
};

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

}  // namespace

void flush_to_disk(const std::filesystem::path& path) {
  Descriptor file(path, O_RDONLY);
  if (::fsync(file.value) != 0) fail("flush", path);
}

void write_file_atomically(const std::filesystem::path& path, std::string_view content) {
  std::filesystem::path aside = path;
  aside += ".tmp-" + std::to_string(::getpid());
  try {
    {
      Descriptor file(aside, O_WRONLY | O_CREAT | O_TRUNC);
      for (size_t written = 0; written < content.size();) {
        const ssize_t count = ::write(file.value, content.data() + written, content.size() - written);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail("write", aside);
        written += static_cast<size_t>(count);
      }
      if (::fsync(file.value) != 0) fail("flush", aside);
    }
    if (::rename(aside.c_str(), path.c_str()) != 0) fail("rename to", path);
  } catch (...) {
    ::unlink(aside.c_str());
    throw;
  }
  flush_to_disk(folder_of(path));
}

void publish_folder(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (std::filesystem::exists(to)) {
    errno = EEXIST;
    fail("rename to", to);
  }
  flush_to_disk(from);
  if (::rename(from.c_str(), to.c_str()) != 0) fail("rename to", to);
  flush_to_disk(folder_of(to));
}

}  // namespace conclave

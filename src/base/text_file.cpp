#include "base/text_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "base/error.h"
#include "base/shown_path.h"

namespace conclave {
namespace {

struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

}  // namespace

std::string read_text_file(const std::filesystem::path& path, uint64_t most_bytes) {
  // O_NONBLOCK: opening a pipe that nobody writes to must not hang; it has no effect on regular files.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct stat status;
  if (file.number < 0 || ::fstat(file.number, &status) != 0)
    user_error("cannot read {}: {}.", shown_path(path), std::strerror(errno));
  if (!S_ISREG(status.st_mode)) user_error("cannot read {}: it is not a regular file.", path.string());
  const auto bytes = static_cast<uint64_t>(status.st_size);
  if (bytes > most_bytes) user_error("{} has {} bytes; at most {} are expected.", path.string(), bytes, most_bytes);
  std::string text(bytes, '\0');
  for (size_t done = 0; done < text.size();) {
    const ssize_t count = ::read(file.number, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) user_error("cannot read {}: {}.", path.string(), std::strerror(errno));
    if (count == 0)
      user_error("{} ends at byte {} instead of {}: it was cut while being read.", path.string(), done, bytes);
    done += static_cast<size_t>(count);
  }
  return text;
}

bool is_folder(const std::filesystem::path& path) {
  std::error_code unreadable;
  return std::filesystem::is_directory(path, unreadable);
}

bool has_name(const std::filesystem::path& path) {
  std::error_code unreadable;
  return std::filesystem::symlink_status(path, unreadable).type() != std::filesystem::file_type::not_found;
}

}  // namespace conclave

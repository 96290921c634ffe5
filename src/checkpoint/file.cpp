#include "checkpoint/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace conclave {
namespace {

[[noreturn]] void fail_system(int error, const char* action, const std::filesystem::path& path) {
  throw std::system_error(error, std::generic_category(), fmt::format("cannot {} {}", action, path.string()));
}

}  // namespace

File File::open_for_reading(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe that nobody writes to must not hang; it has no effect on regular files.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) user_error("cannot read {}: {}.", path.string(), std::strerror(errno));
  File file(path, descriptor);
  struct stat status;
  if (::fstat(descriptor, &status) != 0) file.fail("examine");
  if (!S_ISREG(status.st_mode)) user_error("cannot read {}: it is not a regular file.", path.string());
  return file;
}

File File::open_for_writing(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor < 0) fail_system(errno, "open for writing", path);
  return {path, descriptor};
}

File File::create(const std::filesystem::path& path, uint64_t bytes) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0) fail_system(errno, "create", path);
  File file(path, descriptor);
  if (bytes > 0) {
    int error;
    do {
      error = ::posix_fallocate(descriptor, 0, static_cast<off_t>(bytes));
    } while (error == EINTR);
    if (error != 0) fail_system(error, fmt::format("reserve {} bytes for", bytes).c_str(), path);
  }
  return file;
}

File::File(File&& other) noexcept : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void File::fail(const char* action) const {
  fail_system(errno, action, path_);
}

uint64_t File::size() const {
  struct stat status;
  if (::fstat(descriptor_, &status) != 0) fail("examine");
  return static_cast<uint64_t>(status.st_size);
}

void File::read(uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t count = ::pread(descriptor_, out.data(), out.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("read");
    if (count == 0) {
      user_error("{} ends at byte {}, where {} more were expected: it was truncated while being read.", path_.string(),
                 offset, out.size());
    }
    offset += static_cast<uint64_t>(count);
    out = out.subspan(static_cast<size_t>(count));
  }
}

void File::write(uint64_t offset, std::span<const std::byte> data) const {
  const auto begin = static_cast<off_t>(offset);
  const auto bytes = static_cast<off_t>(data.size());
  while (!data.empty()) {
    const ssize_t count = ::pwrite(descriptor_, data.data(), data.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("write");
    offset += static_cast<uint64_t>(count);
    data = data.subspan(static_cast<size_t>(count));
  }
  // The disk begins with large writes at once, so that flush() has less to wait for. Only a hint: its failure is none.
  if (bytes >= (1 << 20)) (void)::sync_file_range(descriptor_, begin, bytes, SYNC_FILE_RANGE_WRITE);
}

void File::flush() const {
  if (::fsync(descriptor_) != 0) fail("flush");
}

std::string read_text_file(const std::filesystem::path& path, uint64_t most_bytes) {
  const File file = File::open_for_reading(path);
  const uint64_t bytes = file.size();
  if (bytes > most_bytes) user_error("{} has {} bytes; at most {} are expected.", path.string(), bytes, most_bytes);
  std::string text(bytes, '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace conclave

#include "checkpoint/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace conclave {
namespace {

// Of memory, position and length of a write by O_DIRECT: the page size, which is enough for every file system.
constexpr uint64_t alignment = 4096;
// Shorter writes are left to the page cache.
constexpr uint64_t least_uncached_bytes = 1 << 20;

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
  File file(path, descriptor);
  file.prepare_uncached();
  return file;
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
  if (bytes >= least_uncached_bytes) file.prepare_uncached();
  return file;
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      uncached_descriptor_(std::exchange(other.uncached_descriptor_, -1)),
      aligned_block_(std::move(other.aligned_block_)) {}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (uncached_descriptor_ >= 0) ::close(uncached_descriptor_);
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

void File::prepare_uncached() {
  uncached_descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC | O_DIRECT);  // refused by some file systems
}

void File::write(uint64_t offset, std::span<const std::byte> data) {
  const bool large = data.size() >= least_uncached_bytes;
  while (!data.empty()) {
    uint64_t done = 0;
    if (large && uncached_descriptor_ >= 0) {
      // Only whole pages of the file can be written so. The parts of pages before and after them go through the cache,
      // which never holds a page of which O_DIRECT writes a part.
      const uint64_t before = (alignment - offset % alignment) % alignment;
      if (before == 0 && data.size() >= alignment) done = write_uncached(offset, data);
      if (done == 0) done = write_cached(offset, data.first(std::min(data.size(), before > 0 ? before : alignment)));
    } else {
      done = write_cached(offset, data);
      // The disk begins at once, so that flush() has less to wait for. Only a hint: its failure is none.
      if (large)
        (void)::sync_file_range(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(done),
                                SYNC_FILE_RANGE_WRITE);
    }
    offset += done;
    data = data.subspan(done);
  }
}

// Bytes written, at least 1 unless the call was interrupted.
uint64_t File::write_cached(uint64_t offset, std::span<const std::byte> data) {
  const ssize_t count = ::pwrite(descriptor_, data.data(), data.size(), static_cast<off_t>(offset));
  if (count < 0 && errno != EINTR) fail("write");
  return count < 0 ? 0 : static_cast<uint64_t>(count);
}

// Bytes written, of whole pages and at most a block. 0 when the file system does not take the write: no further one is
// tried then.
uint64_t File::write_uncached(uint64_t offset, std::span<const std::byte> data) {
  const uint64_t bytes = std::min<uint64_t>(data.size(), block_bytes) / alignment * alignment;
  const std::byte* from = data.data();
  if (reinterpret_cast<uintptr_t>(from) % alignment != 0) {
    if (!aligned_block_) aligned_block_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, block_bytes)));
    if (!aligned_block_) throw std::bad_alloc();
    std::memcpy(aligned_block_.get(), from, bytes);
    from = aligned_block_.get();
  }
  const ssize_t count = ::pwrite(uncached_descriptor_, from, bytes, static_cast<off_t>(offset));
  if (count >= 0) return static_cast<uint64_t>(count);
  if (errno == EINTR) return 0;
  if (errno != EINVAL) fail("write");
  ::close(std::exchange(uncached_descriptor_, -1));
  return 0;
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

#include "checkpoint/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/shown_path.h"

namespace conclave {
namespace {

// Of memory, position and length of what O_DIRECT moves: the page size, which is enough for every file system.
constexpr uint64_t alignment = 4096;
// Shorter reads and writes are left to the page cache.
constexpr uint64_t least_uncached_bytes = 1 << 20;

// A block at any position lies in whole pages of so many bytes.
constexpr uint64_t aligned_block_bytes = block_bytes + alignment;

// Memory for O_DIRECT, `aligned_block_bytes` long, kept by each thread that moves data for its next block.
std::byte* aligned_block() {
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<std::byte, Free> block;
  if (!block) block.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, aligned_block_bytes)));
  if (!block) throw std::bad_alloc();
  return block.get();
}

// Whether the page cache holds this whole range of a file, which asking does not change: preadv2 with RWF_NOWAIT would
// begin to read ahead.
bool is_cached(int descriptor, uint64_t offset, uint64_t bytes) {
  const uint64_t begin = offset / alignment * alignment;
  const uint64_t length = offset + bytes - begin;
  void* mapped = ::mmap(nullptr, length, PROT_READ, MAP_SHARED, descriptor, static_cast<off_t>(begin));
  if (mapped == MAP_FAILED) return false;
  const auto page_bytes = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages((length + page_bytes - 1) / page_bytes);
  const bool known = ::mincore(mapped, length, pages.data()) == 0;
  ::munmap(mapped, length);
  return known && std::all_of(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) != 0; });
}

bool is_aligned(const std::byte* memory) {
  return reinterpret_cast<uintptr_t>(memory) % alignment == 0;
}

[[noreturn]] void fail_system(int error, const char* action, const std::filesystem::path& path) {
  throw std::system_error(error, std::generic_category(), fmt::format("cannot {} {}", action, path.string()));
}

}  // namespace

File File::open_for_reading(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe that nobody writes to must not hang; it has no effect on regular files.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) user_error("cannot read {}: {}.", shown_path(path), std::strerror(errno));
  File file(path, descriptor);
  struct stat status;
  if (::fstat(descriptor, &status) != 0) file.fail("examine");
  if (!S_ISREG(status.st_mode)) user_error("cannot read {}: it is not a regular file.", path.string());
  if (static_cast<uint64_t>(status.st_size) >= least_uncached_bytes) file.prepare_uncached(O_RDONLY);
  return file;
}

File File::open_for_writing(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor < 0) fail_system(errno, "open for writing", path);
  File file(path, descriptor);
  file.prepare_uncached(O_WRONLY);
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
  if (bytes >= least_uncached_bytes) file.prepare_uncached(O_WRONLY);
  return file;
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      uncached_descriptor_(std::exchange(other.uncached_descriptor_, -1)) {}

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
  const bool large = out.size() >= least_uncached_bytes;
  while (!out.empty()) {
    const uint64_t count = read_some(offset, out, large);
    if (count == 0) {
      user_error("{} ends at byte {}, where {} more were expected: it was truncated while being read.", path_.string(),
                 offset, out.size());
    }
    offset += count;
    out = out.subspan(count);
  }
}

// Bytes read; 0 at the file's end.
uint64_t File::read_some(uint64_t offset, std::span<std::byte> out, bool large) const {
  if (large && uncached_descriptor_ >= 0 &&
      !is_cached(descriptor_, offset, std::min<uint64_t>(out.size(), block_bytes))) {
    if (const std::optional<uint64_t> read = read_uncached(offset, out)) return *read;
  }
  for (;;) {
    const ssize_t count = ::pread(descriptor_, out.data(), out.size(), static_cast<off_t>(offset));
    if (count >= 0) return static_cast<uint64_t>(count);
    if (errno != EINTR) fail("read");
  }
}

// At most `aligned_block_bytes`; 0 at the file's end; nothing where the file system does not take such a read.
std::optional<uint64_t> File::read_uncached(uint64_t offset, std::span<std::byte> out) const {
  const uint64_t skipped = offset % alignment;
  const bool in_place = skipped == 0 && is_aligned(out.data()) && out.size() >= alignment;
  const uint64_t wanted = std::min<uint64_t>(skipped + out.size(), aligned_block_bytes);
  const uint64_t bytes =
      in_place ? wanted / alignment * alignment : (wanted + alignment - 1) / alignment * alignment;  // whole pages
  std::byte* to = in_place ? out.data() : aligned_block();
  ssize_t count;
  do {
    count = ::pread(uncached_descriptor_, to, bytes, static_cast<off_t>(offset - skipped));
  } while (count < 0 && errno == EINTR);
  if (count < 0 && errno == EINVAL) return std::nullopt;
  if (count < 0) fail("read");
  const uint64_t read = std::min(std::max(static_cast<uint64_t>(count), skipped) - skipped, out.size());
  if (!in_place) std::memcpy(out.data(), to + skipped, read);
  return read;
}

void File::prepare_uncached(int flags) {
  uncached_descriptor_ = ::open(path_.c_str(), flags | O_CLOEXEC | O_DIRECT);  // refused by some file systems
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
  if (!is_aligned(from)) from = static_cast<std::byte*>(std::memcpy(aligned_block(), from, bytes));
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

}  // namespace conclave

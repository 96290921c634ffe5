// A file read and written by position, so that several ranks can fill one file without an order among them. Move-only;
// closed by its destructor. A call moves all bytes asked for or throws: a short read or write never passes unnoticed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <utility>

namespace conclave {

// Data passes between tensors and files in blocks of at most this many bytes, whatever the size of a tensor.
inline constexpr int64_t block_bytes = 4 << 20;

class File {
 public:
  // UserError: there is no such file, it cannot be opened, or it is not a regular file.
  static File open_for_reading(const std::filesystem::path& path);
  // An existing file, keeping its content. std::system_error on failure, like everything below.
  static File open_for_writing(const std::filesystem::path& path);
  // An empty or replaced file of `bytes` zeros whose space is reserved on the disk: a disk too full is an error here,
  // not in the middle of writing.
  static File create(const std::filesystem::path& path, uint64_t bytes);

  File(File&& other) noexcept;
  File& operator=(File&&) = delete;
  ~File();

  const std::filesystem::path& path() const { return path_; }
  uint64_t size() const;  // bytes, now

  // UserError when the file ends before the last byte asked for (it was truncated after it was opened). Large reads
  // take what the system's page cache has, and the rest around it.
  void read(uint64_t offset, std::span<std::byte> out) const;
  // Large writes pass by the system's page cache where the file system can do so: what a checkpoint writes is not read
  // again soon, and filling the cache with it costs more than the disk does. docs/checkpoints.md has the numbers.
  void write(uint64_t offset, std::span<const std::byte> data);
  void flush() const;  // to the disk

 private:
  File(std::filesystem::path path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}
  [[noreturn]] void fail(const char* action) const;
  void prepare_uncached(int flags);
  uint64_t read_some(uint64_t offset, std::span<std::byte> out, bool large) const;
  std::optional<uint64_t> read_uncached(uint64_t offset, std::span<std::byte> out) const;
  uint64_t write_uncached(uint64_t offset, std::span<const std::byte> data);
  uint64_t write_cached(uint64_t offset, std::span<const std::byte> data);

  std::filesystem::path path_;
  int descriptor_;
  int uncached_descriptor_ = -1;  // the same file by O_DIRECT; -1 where that cannot be had
};

}  // namespace conclave

// A whole file mapped read-only into memory. The mapping lives as long as the object; pages are read from the disk when
// they are touched. A file that another process truncates while it is mapped kills the reader (SIGBUS): data files are
// replaced by renaming, never rewritten.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace conclave {

class MappedFile {
 public:
  // Throws std::system_error, naming the file and the reason, if it cannot be read; UserError if it is no regular file.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {begin_, size_}; }
  size_t size() const { return size_; }

 private:
  std::filesystem::path path_;
  const std::byte* begin_ = nullptr;
  size_t size_ = 0;
};

}  // namespace conclave

// A file that only grows and that training never depends on: a write that fails (disk full, input/output error) is
// undone, reported once, and dropped. So the file always ends after a whole chunk, and writing goes on when there is
// room again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace conclave {

class AppendFile {
 public:
  // Opens or creates `path`. Throws std::system_error when that fails: nothing has been computed yet that could be
  // lost.
  explicit AppendFile(std::filesystem::path path);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  // Appends all of `chunk` or nothing. Returns whether it was written.
  bool append(std::string_view chunk) noexcept;

  int64_t dropped() const { return dropped_; }  // chunks that could not be written

 private:
  std::filesystem::path path_;
  int descriptor_;
  int64_t dropped_ = 0;
};

}  // namespace conclave

// A folder that is written whole: under another name beside its place, where it goes when everything in it is on the
// disk. What was in that place before is there until then, and survives every failure.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

enum class Overwrite {
  refuse,   // a folder that exists is a mistake
  replace,  // it is replaced, if all it holds is what would be written there again
};

class OutputFolder {
 public:
  // Touches nothing. `writes` says which files a folder of this kind has, `folders` which folders: one that holds any
  // other is not replaced.
  OutputFolder(const std::filesystem::path& folder, Overwrite overwrite, std::function<bool(std::string_view)> writes,
               std::vector<std::string> folders = {});

  const std::filesystem::path& path() const { return folder_; }
  const std::filesystem::path& aside() const { return aside_; }  // where the files are written

  // UserError when the place is taken and may not be.
  void check() const;
  // check(), then an empty folder aside. Also where an earlier attempt left one.
  void create() const;
  // What is aside, flushed file by file before, takes its place.
  void publish() const;
  // After a failure; fails silently.
  void discard() const;

 private:
  std::filesystem::path folder_;  // absolute
  std::filesystem::path aside_;
  Overwrite overwrite_;
  std::function<bool(std::string_view)> writes_;
  std::vector<std::string> folders_;
};

}  // namespace conclave

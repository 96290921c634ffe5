// What the tests of this folder share: files that vanish with the test, and the message of a refusal.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/error.h"

namespace conclave {

// A file of the given content, in a folder of its own below the temporary one.
class TemporaryFile {
 public:
  TemporaryFile(const std::string& name, const std::string& content) {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    static int count = 0;
    folder_ = std::filesystem::path(testing::TempDir()) /
              (std::string("conclave_") + test->test_suite_name() + "_" + test->name() + "_" +
               std::to_string(::getpid()) + "_" + std::to_string(count++));
    std::filesystem::create_directories(folder_);
    path_ = folder_ / name;
    std::ofstream(path_) << content;
  }
  TemporaryFile(const TemporaryFile&) = delete;
  ~TemporaryFile() { std::filesystem::remove_all(folder_); }

  const std::filesystem::path& path() const { return path_; }
  const std::filesystem::path& folder() const { return folder_; }

 private:
  std::filesystem::path folder_;
  std::filesystem::path path_;
};

// The message of the UserError that `action` ends with. Any other exception is left to the test framework.
template <class Action>
std::string refusal_of(Action action) {
  try {
    action();
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace conclave

#include "planner/device_description.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace conclave {
namespace {

class DeviceFile : public ::testing::Test {
 protected:
  std::string write(const std::string& text) {
    const std::filesystem::path file =
        std::filesystem::temp_directory_path() / ("conclave_device_" + std::to_string(::getpid()) + ".yaml");
    std::ofstream(file) << text;
    files_.push_back(file);
    return file;
  }
  void TearDown() override {
    for (const auto& file : files_) std::filesystem::remove(file);
  }
  std::string refusal_of(const std::string& name_or_file) {
    try {
      read_device(name_or_file);
    } catch (const UserError& error) {
      return error.what();
    }
    return "accepted";
  }

 private:
  std::vector<std::filesystem::path> files_;
};

TEST_F(DeviceFile, reads_back_what_was_printed) {
  for (const std::string& name : built_in_devices()) {
    const DeviceDescription device = read_device(name);
    EXPECT_EQ(print_device(read_device(write(print_device(device)))), print_device(device)) << name;
  }
}

TEST_F(DeviceFile, mistakes_are_refused_with_a_remedy) {
  EXPECT_NE(refusal_of("h100-8").find("Did you mean h100-80?"), std::string::npos) << refusal_of("h100-8");
  EXPECT_NE(refusal_of("/nowhere/x.yaml").find("a100-80, cpu, h100-80 or h200-141"), std::string::npos)
      << refusal_of("/nowhere/x.yaml");
  const std::string text = print_device(read_device("cpu"));
  const std::string mistyped = refusal_of(write(text + "\ncompute:\n  fp32_flop: 1\n"));
  EXPECT_NE(mistyped.find("given twice"), std::string::npos) << mistyped;
  const std::string unknown = refusal_of(write("memory:\n  byte: 1e9\n  bandwidth: fast\n"));
  EXPECT_NE(unknown.find("unknown key memory.byte. Did you mean memory.bytes?"), std::string::npos) << unknown;
  EXPECT_NE(unknown.find("memory.bandwidth is fast, but it must be a number"), std::string::npos) << unknown;
  EXPECT_NE(unknown.find("lacks device.kind, compute.fp32_flops"), std::string::npos) << unknown;
}

}  // namespace
}  // namespace conclave

#include "device/choose_device.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "device/cuda_plugin.h"

namespace conclave {
namespace {

TEST(ChooseDevice, cuda_is_refused_with_the_reason_where_there_is_none) {
  std::string why_not;
  if (cuda_device_count(&why_not) > 0) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_FALSE(why_not.empty());
  EXPECT_EQ(choose_device(WantedDevice::automatic, {}), at::kCPU);
  EXPECT_EQ(choose_device(WantedDevice::cpu, {}), at::kCPU);
  try {
    choose_device(WantedDevice::cuda, {});
    FAIL() << "accepted";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("run.device is cuda, but " + why_not), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace conclave

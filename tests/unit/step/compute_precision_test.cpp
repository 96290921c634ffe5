// Oracle: cuBLAS's manual, which has fp32 scales for blocks on compute capability 9.0 alone.
#include "step/compute_precision.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

TEST(ExpertPrecision, fp8_needs_a_hopper_and_names_what_there_is) {
  const auto checked = [](const std::optional<GpuChip>& chip) {
    return [chip] { check_expert_precision(ExpertPrecision::fp8, chip); };
  };
  EXPECT_NO_THROW(checked(GpuChip{"NVIDIA H200", 9, 0})());
  EXPECT_THAT(checked({}), ThrowsMessage<UserError>(AllOf(HasSubstr("precision.experts is fp8"), HasSubstr("CPU"),
                                                          HasSubstr("Use precision.experts: compute"))));
  EXPECT_THAT(checked(GpuChip{"NVIDIA A100", 8, 0}),
              ThrowsMessage<UserError>(AllOf(HasSubstr("NVIDIA A100"), HasSubstr("8.0"))));
  EXPECT_THAT(checked(GpuChip{"NVIDIA B200", 10, 0}),
              ThrowsMessage<UserError>(AllOf(HasSubstr("NVIDIA B200"), HasSubstr("10.0"), HasSubstr("need 9.0"))));
}

TEST(ExpertPrecision, compute_goes_everywhere) {
  EXPECT_NO_THROW(check_expert_precision(ExpertPrecision::compute, {}));
  EXPECT_NO_THROW(check_expert_precision(ExpertPrecision::compute, GpuChip{"NVIDIA A100", 8, 0}));
}

}  // namespace
}  // namespace conclave

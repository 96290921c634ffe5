// In this program the entries of src/kernels choose the kernels of src/cuda, run by the emulator, for tensors on the
// CPU: every test of tests/unit/kernels is a test of theirs.
#include <gtest/gtest.h>

#include "cuda/kernel_table.h"
#include "emulator/device.h"

namespace conclave {
namespace {

// Half of the tests run the threads of a block in descending order, by their place in the program.
class ChooseThreadOrder : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo&) override {
    emulator::thread_order = ++tests_ % 2 == 0 ? emulator::ThreadOrder::descending : emulator::ThreadOrder::ascending;
  }
  int tests_ = 0;
};

const bool replaced = [] {
  use_kernels(at::kCPU, &cuda::kernel_table);
  testing::UnitTest::GetInstance()->listeners().Append(new ChooseThreadOrder);
  return true;
}();

}  // namespace
}  // namespace conclave

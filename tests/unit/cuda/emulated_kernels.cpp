// In this program the entries of src/kernels choose the kernels of src/cuda, run by the emulator, for tensors on the
// CPU: every test of tests/unit/kernels is a test of theirs.
#include <gtest/gtest.h>

#include "cuda/fp8_product.h"
#include "cuda/kernel_table.h"
#include "emulator/device.h"
#include "kernels/fp8_product.h"

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
  use_cuda_kernels(&cuda::kernel_table, at::kCPU);
  testing::UnitTest::GetInstance()->listeners().Append(new ChooseThreadOrder);
  return true;
}();

bool at_whole_16_bytes(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0;
}

// What cuBLAS's manual demands of an operand and of the layout of its scales.
void check_operand(const Fp8Matrix& matrix) {
  const int64_t rows = matrix.value_XS.size(0), sum = matrix.value_XS.size(1);
  const int64_t blocks = (sum + fp8_block - 1) / fp8_block;
  ASSERT_TRUE(at_whole_16_bytes(matrix.value_XS) && at_whole_16_bytes(matrix.scale));
  ASSERT_TRUE(matrix.value_XS.is_contiguous() && matrix.scale.is_contiguous());
  ASSERT_EQ(rows % 4, 0);
  ASSERT_EQ(sum % 16, 0);
  if (matrix.blocks == Fp8Blocks::rows) {
    ASSERT_EQ(matrix.scale.sizes(), (at::IntArrayRef{blocks, rows}));
  } else {
    ASSERT_EQ(matrix.scale.sizes(), (at::IntArrayRef{(rows + fp8_block - 1) / fp8_block, (blocks + 3) / 4 * 4}));
  }
}

}  // namespace

// The device's product is a library's: here the reference stands for it, and for what it demands.
void cuda::fp8_product(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate) {
  ASSERT_EQ(out_XY.size(0), a.value_XS.size(0));
  ASSERT_TRUE(at_whole_16_bytes(out_XY) && out_XY.is_contiguous());
  check_operand(a);
  check_operand(b);
  reference::fp8_product(out_XY, a, b, accumulate);
}

}  // namespace conclave

#include "kernel_test.h"

#include <ATen/Parallel.h>
#include <hwy/highway.h>
#include <hwy/targets.h>
#include <torch/csrc/autograd/autograd.h>

#include "kernels/kernels.h"

namespace conclave {

namespace {

constexpr uint64_t seed = 20240229;

// Reseeds before each test and says so beside each failure. One thread, but where a test asks for more: threads that
// wait for each other are slow on a busy machine.
class SeedListener : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo&) override {
    at::manual_seed(seed);
    at::set_num_threads(1);
  }
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.failed()) std::printf("    seed %lu\n", static_cast<unsigned long>(seed));
  }
};

const bool listening = [] {
  testing::UnitTest::GetInstance()->listeners().Append(new SeedListener);
  return true;
}();

}  // namespace

void expect_close(const char* name, const at::Tensor& actual, const at::Tensor& expected, Tolerance tolerance) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << name;
  if (actual.numel() == 0) return;
  const at::Tensor a = actual.to(at::kDouble).flatten(), e = expected.to(at::kDouble).flatten();
  const at::Tensor allowed = e.abs() * tolerance.relative + tolerance.absolute;
  // not-a-number fails every comparison: count what is inside
  const at::Tensor inside = at::logical_or((a - e).abs().le(allowed), a.eq(e));
  const int64_t outside = a.numel() - inside.sum().item<int64_t>();
  if (outside == 0) return;
  const at::Tensor excess = at::nan_to_num((a - e).abs() - allowed, 1e300, 1e300, -1e300);
  const int64_t worst = excess.argmax().item<int64_t>();
  ADD_FAILURE() << name << " " << actual.sizes() << " of " << c10::toString(actual.scalar_type()) << ": " << outside
                << " of " << a.numel() << " elements are off; the worst, " << worst << ", is "
                << a[worst].item<double>() << ", expected " << e[worst].item<double>() << " +- "
                << allowed[worst].item<double>();
}

void expect_identical(const char* name, const at::Tensor& actual, const at::Tensor& expected) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << name;
  ASSERT_EQ(actual.scalar_type(), expected.scalar_type()) << name;
  EXPECT_TRUE(at::equal(actual, expected)) << name << " " << actual.sizes() << " differs";
}

at::Tensor random_tensor(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::randn(sizes).to(dtype);
}

at::Tensor random_integers(int64_t low, int64_t high, at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::randint(low, high, sizes, at::TensorOptions().dtype(dtype));
}

at::Tensor garbage(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::full(sizes, 1e30, at::TensorOptions().dtype(dtype));
}

std::vector<at::Tensor> gradients(const at::Tensor& output, const at::Tensor& grad_output,
                                  const std::vector<at::Tensor>& inputs) {
  return torch::autograd::grad({output}, inputs, {grad_output}, /*retain_graph=*/true);
}

at::Tensor leaf(const at::Tensor& tensor) {
  return tensor.detach().to(at::kDouble).clone().requires_grad_();
}

void SimdTest::SetUp() {
  hwy::SetSupportedTargetsForTest(GetParam());
  hwy::GetChosenTarget().DeInit();
}

void SimdTest::TearDown() {
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

std::vector<int64_t> simd_targets() {
  // Kernels that stand in the place of the CPU's know no instruction sets: one is as good as all.
  if (&kernels_of(at::kCPU) != &cpu_kernels()) return {HWY_SCALAR};
  std::vector<int64_t> targets;
  for (const int64_t target : {HWY_AVX3, HWY_AVX2, HWY_NEON, HWY_SCALAR}) {
    if (hwy::SupportedTargets() & target) targets.push_back(target);
  }
  return targets;
}

std::string simd_target_name(const testing::TestParamInfo<int64_t>& info) {
  return hwy::TargetName(info.param);
}

}  // namespace conclave

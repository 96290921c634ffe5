// What the tests of the kernels share. The chain of trust: autograd over plain ATen expressions in double, or ATen's
// own op, is the oracle of a reference; the reference in double is the oracle of the fast paths, on every instruction
// set this machine has.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace conclave {

constexpr double eps_fp32 = 1.0 / (1 << 23);
constexpr double eps_bf16 = 1.0 / (1 << 7);

// The error of one rounding to the dtype, relative: what storing a result costs.
inline double rounding(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? eps_bf16 / 2 : dtype == at::kFloat ? eps_fp32 / 2 : 0;
}

// Set where the kernels under test run on a GPU: there a value out of range is no exception, but the end of the device.
inline bool breach_breaks_device = false;

// |actual - expected| <= relative * |expected| + absolute for every element; the message names the worst one.
struct Tolerance {
  double relative = 0;
  double absolute = 0;
};
void expect_close(const char* name, const at::Tensor& actual, const at::Tensor& expected, Tolerance tolerance);
void expect_identical(const char* name, const at::Tensor& actual, const at::Tensor& expected);

// Standard normal, from one generator per test (its seed is in every failure's message).
at::Tensor random_tensor(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat);
// Uniform in [low, high).
at::Tensor random_integers(int64_t low, int64_t high, at::IntArrayRef sizes, at::ScalarType dtype);
// Large finite garbage: an output that keeps any of it was not written.
at::Tensor garbage(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat);

// Vector-Jacobian product by autograd: the gradients of sum(output * grad_output) with respect to the inputs (leaves
// that require a gradient).
std::vector<at::Tensor> gradients(const at::Tensor& output, const at::Tensor& grad_output,
                                  const std::vector<at::Tensor>& inputs);
// A leaf of double with the values of `tensor`.
at::Tensor leaf(const at::Tensor& tensor);

// One instruction set of those that Highway was built for and this machine has.
class SimdTest : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override;
  void TearDown() override;
};
std::vector<int64_t> simd_targets();
std::string simd_target_name(const testing::TestParamInfo<int64_t>& info);

// Runs `compute` with one thread and with two; the tensors must be equal bit for bit.
template <class F>
void expect_same_for_any_threads(const F& compute) {
  if (&kernels_of(at::kCPU) != &cpu_kernels()) return;  // the threads of the CPU do not matter there
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const std::vector<at::Tensor> alone = compute();
  at::set_num_threads(2);
  const std::vector<at::Tensor> together = compute();
  at::set_num_threads(threads);
  for (size_t i = 0; i < alone.size(); ++i) {
    expect_identical(("result " + std::to_string(i)).c_str(), together[i], alone[i]);
  }
}

#define CONCLAVE_SIMD_TESTS(suite) \
  INSTANTIATE_TEST_SUITE_P(simd, suite, testing::ValuesIn(simd_targets()), simd_target_name)

}  // namespace conclave

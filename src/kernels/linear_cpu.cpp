#include "kernels/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/linear_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

void add_bf16(const at::Tensor& sum_RM, const at::Tensor& x_RM) {
  for (int64_t r = 0; r < x_RM.size(0); ++r) {
    float* sum = cpu::data<float>(sum_RM) + r * sum_RM.stride(0);
    const uint16_t* row = cpu::data<uint16_t>(x_RM) + r * x_RM.stride(0);
    for_lanes(x_RM.size(1),
              [=](auto d, size_t i) HWY_ATTR { store(hn::Add(load(d, sum + i), load(d, row + i)), d, sum + i); });
  }
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(add_bf16);

void cpu::add_bf16(at::Tensor sum_RM, const at::Tensor& x_RM) {
  HWY_DYNAMIC_DISPATCH(add_bf16)(sum_RM, x_RM);
}

}  // namespace conclave
#endif

// 1 / (1 + exp(-x)) for the fast paths of the CPU. Included as simd-inl.h is.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#if defined(CONCLAVE_KERNELS_SIGMOID_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_SIGMOID_INL_H_
#undef CONCLAVE_KERNELS_SIGMOID_INL_H_
#else
#define CONCLAVE_KERNELS_SIGMOID_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// From exp(-|x|), which cannot overflow.
template <class D>
HWY_INLINE hn::Vec<D> sigmoid(D d, hn::Vec<D> x) {
  const auto one = hn::Set(d, 1.0f);
  const auto small = hn::Exp(d, hn::Neg(hn::Abs(x)));
  return hn::Div(hn::IfThenElse(hn::Lt(x, hn::Zero(d)), small, one), hn::Add(one, small));
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle

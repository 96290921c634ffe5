#include "kernels/latent_heads.h"

#include "kernels/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/latent_heads_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

using cpu::data;

template <class T>
HWY_INLINE T* row_of(const at::Tensor& rows, int64_t row) {
  return data<T>(rows) + row * rows.stride(0);
}

template <class T>
void expand(const at::Tensor& qkv_TM, const at::Tensor& kv_TX, const at::Tensor& rotary_TR, const LatentHeads& heads,
            int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* key = row_of<T>(qkv_TM, row) + heads.count * heads.key_dim();
    T* value = key + heads.count * heads.key_dim();
    const T *latent = row_of<T>(kv_TX, row), *rotary = row_of<T>(rotary_TR, row);
    for (int64_t head = 0; head < heads.count; ++head) {
      key = std::copy_n(latent, heads.plain_dim, key);
      key = std::copy_n(rotary, heads.rotary_dim, key);
      value = std::copy_n(latent + heads.plain_dim, heads.value_dim, value);
      latent += heads.plain_dim + heads.value_dim;
    }
  }
}

template <class T>
void collect(const at::Tensor& grad_kv_TX, const at::Tensor& grad_rotary_TR, const at::Tensor& grad_qkv_TM,
             const LatentHeads& heads, int64_t begin, int64_t end) {
  const int64_t key_dim = heads.key_dim(), count = heads.count;
  for (int64_t row = begin; row < end; ++row) {
    const T* key = row_of<T>(grad_qkv_TM, row) + count * key_dim;
    const T *value = key + count * key_dim, *turned = key + heads.plain_dim;
    T *latent = row_of<T>(grad_kv_TX, row), *rotary = row_of<T>(grad_rotary_TR, row);
    for (int64_t head = 0; head < count; ++head) {
      latent = std::copy_n(key + head * key_dim, heads.plain_dim, latent);
      latent = std::copy_n(value + head * heads.value_dim, heads.value_dim, latent);
    }
    for_lanes(heads.rotary_dim, [=](auto d, size_t i) HWY_ATTR {
      auto sum = load(d, turned + i);
      for (int64_t head = 1; head < count; ++head) sum = hn::Add(sum, load(d, turned + head * key_dim + i));
      store(sum, d, rotary + i);
    });
  }
}

void expand_latent_rows(const at::Tensor& qkv_TM, const at::Tensor& kv_TX, const at::Tensor& rotary_TR,
                        const LatentHeads& heads, int64_t begin, int64_t end) {
  cpu::with_elements_of(qkv_TM,
                        [&](auto element) { expand<decltype(element)>(qkv_TM, kv_TX, rotary_TR, heads, begin, end); });
}

void collect_latent_rows(const at::Tensor& grad_kv_TX, const at::Tensor& grad_rotary_TR, const at::Tensor& grad_qkv_TM,
                         const LatentHeads& heads, int64_t begin, int64_t end) {
  cpu::with_elements_of(grad_qkv_TM, [&](auto element) {
    collect<decltype(element)>(grad_kv_TX, grad_rotary_TR, grad_qkv_TM, heads, begin, end);
  });
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(expand_latent_rows);
HWY_EXPORT(collect_latent_rows);

void cpu::expand_latent(at::Tensor qkv_TM, const at::Tensor& kv_TX, const at::Tensor& rotary_TR,
                        const LatentHeads& heads) {
  for_rows(qkv_TM.size(0), heads.packed_columns(), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(expand_latent_rows)(qkv_TM, kv_TX, rotary_TR, heads, begin, end);
  });
}

void cpu::collect_latent(at::Tensor grad_kv_TX, at::Tensor grad_rotary_TR, const at::Tensor& grad_qkv_TM,
                         const LatentHeads& heads) {
  for_rows(grad_qkv_TM.size(0), heads.packed_columns(), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(collect_latent_rows)(grad_kv_TX, grad_rotary_TR, grad_qkv_TM, heads, begin, end);
  });
}

}  // namespace conclave
#endif  // HWY_ONCE

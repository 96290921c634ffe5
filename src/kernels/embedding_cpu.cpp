#include "kernels/embedding.h"

#include <cstring>

#include "base/error.h"
#include "kernels/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/embedding_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

using cpu::data;

template <class T>
void add_columns(const at::Tensor& grad_table_VH, const at::Tensor& grad_out_TH, const int64_t* tokens, int64_t begin,
                 int64_t end) {
  const int64_t hidden = grad_out_TH.size(1);
  for (int64_t t = 0; t < grad_out_TH.size(0); ++t) {
    float* sum = data<float>(grad_table_VH) + tokens[t] * hidden + begin;
    const T* row = data<T>(grad_out_TH) + t * hidden + begin;
    for_lanes(end - begin,
              [=](auto d, size_t i) HWY_ATTR { store(hn::Add(load(d, sum + i), load(d, row + i)), d, sum + i); });
  }
}

// Columns [begin, end) of every row.
void embedding_add_columns(const at::Tensor& grad_table_VH, const at::Tensor& grad_out_TH, const int64_t* tokens,
                           int64_t begin, int64_t end) {
  cpu::with_elements_of(grad_out_TH, [&](auto element) {
    add_columns<decltype(element)>(grad_table_VH, grad_out_TH, tokens, begin, end);
  });
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(embedding_add_columns);

namespace {

const int64_t* checked_tokens(const char* op, const at::Tensor& tokens_T, int64_t vocabulary) {
  const int64_t* tokens = tokens_T.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < tokens_T.numel(); ++t) {
    check_invariant(tokens[t] >= 0 && tokens[t] < vocabulary, "{}: token {} at {}, vocabulary of {}", op, tokens[t], t,
                    vocabulary);
  }
  return tokens;
}

}  // namespace

void cpu::embedding_forward(at::Tensor out_TH, const at::Tensor& table_VH, const at::Tensor& tokens_T) {
  const int64_t* tokens = checked_tokens("embedding_forward", tokens_T, table_VH.size(0));
  const int64_t bytes = table_VH.size(1) * static_cast<int64_t>(table_VH.element_size());
  for_rows(tokens_T.numel(), table_VH.size(1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      std::memcpy(data<char>(out_TH) + t * bytes, data<char>(table_VH) + tokens[t] * bytes, bytes);
    }
  });
}

// A thread takes columns, not tokens: every entry of the table then sums its tokens in order, however often a token
// repeats.
void cpu::embedding_backward(at::Tensor grad_table_VH, const at::Tensor& grad_out_TH, const at::Tensor& tokens_T) {
  const int64_t* tokens = checked_tokens("embedding_backward", tokens_T, grad_table_VH.size(0));
  constexpr int64_t group = 64;  // columns that no two threads share: 256 bytes
  const int64_t hidden = grad_out_TH.size(1);
  for_rows((hidden + group - 1) / group, group * tokens_T.numel(), [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(embedding_add_columns)
    (grad_table_VH, grad_out_TH, tokens, first * group, std::min(hidden, last * group));
  });
}

}  // namespace conclave
#endif  // HWY_ONCE

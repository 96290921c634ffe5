#include "kernels/permute.h"

#include <ATen/ops/empty.h>

#include <cstring>
#include <vector>

#include "base/error.h"
#include "kernels/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/permute_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

using cpu::data;

// out = residual (if any) + the sum of `count` rows, in order, rounded once. A row may lie at any address: messages are
// bytes.
template <class T>
HWY_INLINE void add_rows(T* out, const T* residual, const T* const* rows, int64_t count, int64_t hidden) {
  for_lanes(hidden, [=](auto d, size_t i) HWY_ATTR {
    auto sum = hn::Zero(d);
    for (int64_t r = 0; r < count; ++r) sum = hn::Add(sum, load(d, rows[r] + i));
    if (residual != nullptr) sum = hn::Add(load(d, residual + i), sum);
    store(sum, d, out + i);
  });
}

template <class T>
void combine(const at::Tensor& out_TH, const at::Tensor& residual_TH, const char* rows, int64_t row_stride,
             const at::Tensor& row_of_choice_TK, int64_t begin, int64_t end) {
  const int64_t hidden = out_TH.size(1), top_k = row_of_choice_TK.size(1);
  const T* residual = residual_TH.defined() ? data<T>(residual_TH) : nullptr;
  std::vector<const T*> chosen(top_k);
  for (int64_t t = begin; t < end; ++t) {
    const int32_t* row_of_choice = data<int32_t>(row_of_choice_TK) + t * top_k;
    int64_t count = 0;
    for (int64_t k = 0; k < top_k; ++k) {
      if (row_of_choice[k] >= 0) chosen[count++] = reinterpret_cast<const T*>(rows + row_of_choice[k] * row_stride);
    }
    add_rows(data<T>(out_TH) + t * hidden, residual == nullptr ? nullptr : residual + t * hidden, chosen.data(), count,
             hidden);
  }
}

// Tokens [begin, end); row r begins `r * row_stride` bytes behind `rows`.
void combine_range(const at::Tensor& out_TH, const at::Tensor& residual_TH, const char* rows, int64_t row_stride,
                   const at::Tensor& row_of_choice_TK, int64_t begin, int64_t end) {
  cpu::with_elements_of(out_TH, [&](auto element) {
    combine<decltype(element)>(out_TH, residual_TH, rows, row_stride, row_of_choice_TK, begin, end);
  });
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(combine_range);

namespace {

int64_t row_bytes(const at::Tensor& rows) {
  return rows.size(1) * static_cast<int64_t>(rows.element_size());
}

// An index out of range would be a wild read or write in another rank's data: checked before any row moves.
void check_index(const char* op, const at::Tensor& index, int64_t lowest, int64_t size) {
  const int32_t* value = index.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < index.numel(); ++i) {
    check_invariant(value[i] >= lowest && value[i] < size, "{}: index {} at {}, of {} rows", op, value[i], i, size);
  }
}

}  // namespace

void cpu::gather_rows(at::Tensor out_RH, const at::Tensor& rows_NH, const at::Tensor& index_R) {
  check_index("gather_rows", index_R, 0, rows_NH.size(0));
  const int64_t bytes = row_bytes(rows_NH);
  const int32_t* index = index_R.const_data_ptr<int32_t>();
  for_rows(index_R.numel(), rows_NH.size(1), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      std::memcpy(data<char>(out_RH) + r * bytes, data<char>(rows_NH) + index[r] * bytes, bytes);
    }
  });
}

void cpu::pack_rows(at::Tensor messages_RM, const at::Tensor& rows_NH, const at::Tensor& row_index_R,
                    const at::Tensor& weights, const at::Tensor& weight_index_R) {
  check_index("pack_rows", row_index_R, 0, rows_NH.size(0));
  check_index("pack_rows", weight_index_R, 0, weights.numel());
  const int64_t bytes = row_bytes(rows_NH), stride = messages_RM.size(1);
  const int64_t padding = stride - bytes - static_cast<int64_t>(sizeof(float));
  const int32_t* row_index = row_index_R.const_data_ptr<int32_t>();
  const int32_t* weight_index = weight_index_R.const_data_ptr<int32_t>();
  for_rows(row_index_R.numel(), rows_NH.size(1), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      char* message = data<char>(messages_RM) + r * stride;
      std::memcpy(message, data<char>(rows_NH) + row_index[r] * bytes, bytes);
      std::memcpy(message + bytes, data<float>(weights) + weight_index[r], sizeof(float));
      std::memset(message + bytes + sizeof(float), 0, padding);
    }
  });
}

void cpu::unpack_rows(at::Tensor rows_RH, at::Tensor weight_R, const at::Tensor& messages_NM,
                      const at::Tensor& index_R) {
  check_index("unpack_rows", index_R, 0, messages_NM.size(0));
  const int64_t bytes = row_bytes(rows_RH), stride = messages_NM.size(1);
  const int32_t* index = index_R.const_data_ptr<int32_t>();
  for_rows(index_R.numel(), rows_RH.size(1), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const char* message = data<char>(messages_NM) + index[r] * stride;
      std::memcpy(data<char>(rows_RH) + r * bytes, message, bytes);
      std::memcpy(data<float>(weight_R) + r, message + bytes, sizeof(float));
    }
  });
}

void cpu::combine_rows(at::Tensor out_TH, const at::Tensor& residual_TH, const at::Tensor& rows_RH,
                       const at::Tensor& row_of_choice_TK) {
  check_index("combine_rows", row_of_choice_TK, -1, rows_RH.size(0));
  for_rows(out_TH.size(0), out_TH.size(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(combine_range)
    (out_TH, residual_TH, data<char>(rows_RH), row_bytes(rows_RH), row_of_choice_TK, begin, end);
  });
}

void cpu::combine_messages(at::Tensor out_TH, at::Tensor weight_TK, const at::Tensor& messages_RM,
                           const at::Tensor& row_of_choice_TK) {
  check_index("combine_messages", row_of_choice_TK, -1, messages_RM.size(0));
  const int64_t bytes = row_bytes(out_TH), stride = messages_RM.size(1), top_k = row_of_choice_TK.size(1);
  const char* messages = data<char>(messages_RM);
  for_rows(out_TH.size(0), out_TH.size(1), [&](int64_t begin, int64_t end) {
    for (int64_t choice = begin * top_k; choice < end * top_k; ++choice) {
      const int32_t row = data<int32_t>(row_of_choice_TK)[choice];
      float* weight = data<float>(weight_TK) + choice;
      if (row < 0) {
        *weight = 0;
      } else {
        std::memcpy(weight, messages + row * stride + bytes, sizeof(float));
      }
    }
    HWY_DYNAMIC_DISPATCH(combine_range)
    (out_TH, /*residual=*/at::Tensor(), messages, stride, row_of_choice_TK, begin, end);
  });
}

ExpertOrder cpu::order_by_expert(const at::Tensor& expert_of_choice_TK, int64_t experts,
                                 const at::Tensor& /*assumed_count_E*/) {
  check_index("order_by_expert", expert_of_choice_TK, -1, experts);
  const int64_t choices = expert_of_choice_TK.numel();
  const auto int32 = at::TensorOptions().dtype(at::kInt);
  ExpertOrder order{
      {}, at::empty(expert_of_choice_TK.sizes(), int32), at::empty({experts}, at::TensorOptions().dtype(at::kLong))};
  const int32_t* expert = expert_of_choice_TK.const_data_ptr<int32_t>();
  int64_t* count = order.count_E.data_ptr<int64_t>();
  std::fill_n(count, experts, 0);
  int64_t rows = 0;
  for (int64_t choice = 0; choice < choices; ++choice)
    if (expert[choice] >= 0) {
      ++count[expert[choice]];
      ++rows;
    }

  std::vector<int32_t> next(experts);  // the row that the next choice of an expert gets
  for (int64_t e = 1; e < experts; ++e) next[e] = next[e - 1] + static_cast<int32_t>(count[e - 1]);
  order.choice_of_row_R = at::empty({rows}, int32);
  int32_t* choice_of_row = order.choice_of_row_R.data_ptr<int32_t>();
  int32_t* row_of_choice = order.row_of_choice_TK.data_ptr<int32_t>();
  for (int64_t choice = 0; choice < choices; ++choice) {
    if (expert[choice] < 0) {
      row_of_choice[choice] = -1;
      continue;
    }
    const int32_t row = next[expert[choice]]++;
    choice_of_row[row] = static_cast<int32_t>(choice);
    row_of_choice[choice] = row;
  }
  return order;
}

}  // namespace conclave
#endif  // HWY_ONCE

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/bias_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

// y += scale * bias; T: the row's elements, U: the bias's.
template <class T, class U>
void add_to_row(T* y, const U* bias, float scale, int64_t columns) {
  for_lanes(columns, [=](auto d, size_t i) HWY_ATTR {
    const auto b = rounded_to<T>(d, load(d, bias + i));
    store(hn::MulAdd(b, hn::Set(d, scale), load(d, y + i)), d, y + i);
  });
}

template <class T, class U>
float row_dot(const T* grad_y, const U* bias, int64_t columns) {
  return sum_lanes(columns, [=](auto d, size_t i)
                                HWY_ATTR { return hn::Mul(load(d, grad_y + i), rounded_to<T>(d, load(d, bias + i))); });
}

// sum [columns] = or += scale[r] * grad_y[r] over rows that lie `stride` apart, in blocks of rows, so that the error
// grows with the root of their number at most. A null scale is 1.
template <class T>
void sum_rows(float* sum, const T* grad_y, int64_t stride, const float* scale, int64_t rows, int64_t columns,
              bool accumulate) {
  constexpr int64_t block_rows = 32, stripe = 256;
  alignas(64) float block[stripe];
  for (int64_t left = 0; left < columns; left += stripe) {
    const int64_t some = std::min(stripe, columns - left);
    float* to = sum + left;
    if (!accumulate) std::fill_n(to, some, 0.0f);
    for (int64_t begin = 0; begin < rows; begin += block_rows) {
      std::fill_n(block, some, 0.0f);
      for (int64_t r = begin; r < std::min(rows, begin + block_rows); ++r) {
        const T* row = grad_y + r * stride + left;
        const float factor = scale != nullptr ? scale[r] : 1.0f;
        float* in_block = block;
        for_lanes(some, [=](auto d, size_t i) HWY_ATTR {
          store(hn::MulAdd(load(d, row + i), hn::Set(d, factor), load(d, in_block + i)), d, in_block + i);
        });
      }
      const float* in_block = block;
      for_lanes(some,
                [=](auto d, size_t i) HWY_ATTR { store(hn::Add(load(d, to + i), load(d, in_block + i)), d, to + i); });
    }
  }
}

void add_to_row_of(const at::Tensor& y_RN, const at::Tensor& bias_LN, int64_t row, int64_t bias, float scale) {
  const int64_t columns = y_RN.size(1);
  cpu::with_elements_of(y_RN, [&](auto y) {
    cpu::with_elements_of(bias_LN, [&](auto b) {
      add_to_row(cpu::data<decltype(y)>(y_RN) + row * y_RN.stride(0), cpu::data<decltype(b)>(bias_LN) + bias * columns,
                 scale, columns);
    });
  });
}

float row_dot_of(const at::Tensor& grad_y_RN, const at::Tensor& bias_LN, int64_t row, int64_t bias) {
  const int64_t columns = grad_y_RN.size(1);
  float dot = 0;
  cpu::with_elements_of(grad_y_RN, [&](auto y) {
    cpu::with_elements_of(bias_LN, [&](auto b) {
      dot = row_dot(cpu::data<decltype(y)>(grad_y_RN) + row * columns, cpu::data<decltype(b)>(bias_LN) + bias * columns,
                    columns);
    });
  });
  return dot;
}

void sum_rows_of(float* sum, const at::Tensor& grad_y_RN, int64_t left, const float* scale, int64_t begin, int64_t end,
                 int64_t columns, bool accumulate) {
  const int64_t stride = grad_y_RN.size(1);
  cpu::with_elements_of(grad_y_RN, [&](auto element) {
    sum_rows(sum, cpu::data<decltype(element)>(grad_y_RN) + begin * stride + left, stride,
             scale != nullptr ? scale + begin : nullptr, end - begin, columns, accumulate);
  });
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(add_to_row_of);
HWY_EXPORT(row_dot_of);
HWY_EXPORT(sum_rows_of);
namespace {

// Where the rows of each bias begin, and behind them where the last one's end.
std::vector<int64_t> begins_of(int64_t rows, int64_t biases, const at::Tensor& ends_L) {
  std::vector<int64_t> begins(biases + 1, 0);
  if (!ends_L.defined()) {
    begins.back() = rows;
    return begins;
  }
  std::copy_n(cpu::data<int32_t>(ends_L), biases, begins.begin() + 1);
  check_invariant(std::is_sorted(begins.begin(), begins.end()) && begins.back() == rows,
                  "the rows of {} biases end at {}, there are {}", biases, begins.back(), rows);
  return begins;
}

// f(row, bias) for every row, in parallel.
template <class F>
void for_rows_and_biases(int64_t rows, int64_t columns, const std::vector<int64_t>& begins, const F& f) {
  cpu::for_rows(rows, columns, [&](int64_t begin, int64_t end) {
    auto bias = std::upper_bound(begins.begin(), begins.end(), begin) - begins.begin() - 1;
    for (int64_t row = begin; row < end; ++row) {
      while (begins[bias + 1] <= row) ++bias;
      f(row, static_cast<int64_t>(bias));
    }
  });
}

}  // namespace

void cpu::add_bias(const at::Tensor& y_RN, const at::Tensor& bias_LN, const at::Tensor& scale_R,
                   const at::Tensor& ends_L) {
  const float* scale = scale_R.defined() ? data<float>(scale_R) : nullptr;
  for_rows_and_biases(y_RN.size(0), y_RN.size(1), begins_of(y_RN.size(0), bias_LN.size(0), ends_L),
                      [&](int64_t row, int64_t bias) {
                        HWY_DYNAMIC_DISPATCH(add_to_row_of)
                        (y_RN, bias_LN, row, bias, scale != nullptr ? scale[row] : 1.0f);
                      });
}

void cpu::bias_scale_backward_add(const at::Tensor& grad_scale_R, const at::Tensor& grad_y_RN,
                                  const at::Tensor& bias_LN, const at::Tensor& ends_L) {
  for_rows_and_biases(grad_y_RN.size(0), grad_y_RN.size(1), begins_of(grad_y_RN.size(0), bias_LN.size(0), ends_L),
                      [&](int64_t row, int64_t bias) {
                        data<float>(grad_scale_R)[row] +=
                            HWY_DYNAMIC_DISPATCH(row_dot_of)(grad_y_RN, bias_LN, row, bias);
                      });
}

// Each thread has some columns of a bias, and all of its rows.
void cpu::bias_backward(const at::Tensor& grad_bias_LN, const at::Tensor& grad_y_RN, bool accumulate,
                        const at::Tensor& scale_R, const at::Tensor& ends_L) {
  constexpr int64_t task_columns = 512;
  const int64_t biases = grad_bias_LN.size(0), columns = grad_bias_LN.size(1);
  const float* scale = scale_R.defined() ? data<float>(scale_R) : nullptr;
  const std::vector<int64_t> begins = begins_of(grad_y_RN.size(0), biases, ends_L);
  const int64_t across = (columns + task_columns - 1) / task_columns;
  for_tasks(biases * across, [&](int64_t task) {
    const int64_t bias = task / across, left = task % across * task_columns;
    HWY_DYNAMIC_DISPATCH(sum_rows_of)
    (data<float>(grad_bias_LN) + bias * columns + left, grad_y_RN, left, scale, begins[bias], begins[bias + 1],
     std::min(task_columns, columns - left), accumulate);
  });
}

}  // namespace conclave
#endif  // HWY_ONCE

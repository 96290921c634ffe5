#include <ATen/native/CPUBlas.h>
#include <fbgemm/Utils.h>

#include <type_traits>

#include "kernels/operand_blocks.h"
#include "kernels/turned_product.h"

namespace conclave {
namespace {

using cpu::block_columns;
using cpu::block_rows;
using cpu::block_terms;

// Rows of a are columns here, in panels of as many as a block has. Their number changes with every routing: multiples
// of 16 keep the micro-kernels few. What lies behind the last one is multiplied, and not read.
int64_t stored_columns(int64_t rows) {
  return (rows + 15) / 16 * 16;
}

struct Panel {
  int64_t first, rows, stored;
};
Panel panel_at(int64_t first, int64_t rows) {
  const int64_t some = std::min(block_columns, rows - first);
  return {first, some, stored_columns(some)};
}

// All rows of a, transposed: panel after panel, each with all its terms.
template <class T>
void copy_panels(T* to, const cpu::Operand<T>& a, int64_t rows, int64_t terms) {
  cpu::Operand<T> turned = a;
  turned.transposed = true;
  for (int64_t first = 0; first < rows; first += block_columns) {
    const Panel panel = panel_at(first, rows);
    for (int64_t k = 0; k < terms; k += block_terms)
      cpu::copy_b(to + first * terms + k * panel.stored, panel.stored, turned, k, first,
                  std::min(block_terms, terms - k), panel.rows);
  }
}

// The rows of b's memory [column, column + columns) from term k on, as the micro-kernel takes them: as they lie, or
// rounded where a is bf16, a row's terms in one go.
template <class T, class U>
struct Weight {
  const cpu::Operand<U>& b;
  int64_t terms;
  int64_t column, columns;

  int64_t stride() const { return std::is_same_v<T, U> ? b.stride : cpu::rounded_stride; }
  const T* from(int64_t k) const {
    if constexpr (std::is_same_v<T, U>) {
      return b.at(k, column);
    } else {
      uint16_t* rounded = cpu::block_scratch().rounded;
      const int64_t there = k % cpu::rounded_terms;
      if (there == 0)
        cpu::round_rows(rounded, cpu::rounded_stride, b.at(k, column), b.stride, columns,
                        std::min(cpu::rounded_terms, terms - k), false);
      return rounded + there;
    }
  }
};

// Sums [columns, rows] of one block of columns, panel after panel.
template <class T>
struct Sums {
  float* data;
  int64_t columns;
  float* of(const Panel& panel) const { return data + panel.first * block_rows; }

  // What the sums are added to, where it is fp32.
  void load(const float* out, int64_t stride, int64_t rows) const {
    for (int64_t first = 0; first < rows; first += block_columns) {
      const Panel panel = panel_at(first, rows);
      fbgemm::transpose_simd<float>(panel.rows, columns, out + first * stride, stride, of(panel), panel.stored);
    }
  }
  void store(float* out, int64_t stride, int64_t rows) const {
    for (int64_t first = 0; first < rows; first += block_columns) {
      const Panel panel = panel_at(first, rows);
      fbgemm::transpose_simd<float>(columns, panel.rows, of(panel), panel.stored, out + first * stride, stride);
    }
  }
  void round(uint16_t* out, int64_t stride, int64_t rows, bool accumulate) const {
    float* turned_back = cpu::block_scratch().b;
    for (int64_t first = 0; first < rows; first += block_columns) {
      const Panel panel = panel_at(first, rows);
      fbgemm::transpose_simd<float>(columns, panel.rows, of(panel), panel.stored, turned_back, block_rows);
      cpu::round_rows(out + first * stride, stride, turned_back, block_rows, panel.rows, columns, accumulate);
    }
  }
};

template <class T, class U>
void multiply_columns(const at::Tensor& out, const cpu::Operand<T>& a, const cpu::Operand<U>& b, int64_t terms,
                      int64_t left, int64_t right, bool accumulate) {
  cpu::BlockScratch& own = cpu::block_scratch();
  const int64_t rows = out.size(0), stride = out.stride(0);
  const bool rounds = out.scalar_type() != at::kFloat;
  T* panels = reinterpret_cast<T*>(own.a);
  copy_panels(panels, a, rows, terms);
  for (int64_t column = left; column < right; column += block_rows) {
    const Sums<T> sums{own.sums, std::min(block_rows, right - column)};
    const Weight<T, U> weight{b, terms, column, sums.columns};
    if (accumulate && !rounds) sums.load(cpu::data<float>(out) + column, stride, rows);
    for (int64_t k = 0; k < terms; k += block_terms) {
      const int64_t some = std::min(block_terms, terms - k);
      const T* rows_of_b = weight.from(k);
      for (int64_t first = 0; first < rows; first += block_columns) {
        const Panel panel = panel_at(first, rows);
        cpu::multiply_block(sums.columns, panel.stored, some, rows_of_b, weight.stride(),
                            panels + first * terms + k * panel.stored, panel.stored, sums.of(panel), panel.stored,
                            (accumulate && !rounds) || k > 0);
      }
    }
    if (rounds)
      sums.round(cpu::data<uint16_t>(out) + column, stride, rows, accumulate);
    else
      sums.store(cpu::data<float>(out) + column, stride, rows);
  }
  at::native::cpublas::brgemm_release(sizeof(T) != sizeof(float));
}

template <class T, class U>
void multiply_all(const at::Tensor& out, const at::Tensor& a_RM, const at::Tensor& b_MN, bool accumulate) {
  const cpu::Operand<T> a(a_RM);
  const cpu::Operand<U> b(b_MN);
  const int64_t columns = out.size(1), terms = a_RM.size(1);
  // Each thread transposes the rows for itself. How columns are divided changes no sum.
  const int64_t part = at::get_num_threads() == 1 ? columns : cpu::most_columns;
  cpu::for_tasks((columns + part - 1) / part, [&](int64_t i) {
    multiply_columns(out, a, b, terms, i * part, std::min(columns, (i + 1) * part), accumulate);
  });
}

}  // namespace

bool cpu::turns_product(const at::Tensor& a, const at::Tensor& b) {
  const int64_t rows = a.size(0), terms = a.size(1), columns = b.size(1);
  constexpr auto room = static_cast<int64_t>(std::size(decltype(BlockScratch::a){}));
  return b.stride(1) != 1 && a.stride(1) == 1 && (a.scalar_type() == at::kFloat || terms % 2 == 0) &&
         rows <= most_rows && stored_columns(rows) * terms <= room && rows * (terms + columns) < terms * columns;
}

void cpu::turned_product(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  if (a.scalar_type() == at::kFloat) return multiply_all<float, float>(out, a, b, accumulate);
  with_elements_of(b, [&](auto element) { multiply_all<uint16_t, decltype(element)>(out, a, b, accumulate); });
}

}  // namespace conclave

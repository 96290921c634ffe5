#include "kernels/blocked_product.h"

#include <ATen/ATen.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/record_function.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/cpu_features.h"
#include "kernels/operand_blocks.h"
#include "kernels/turned_product.h"

namespace conclave {
namespace {

using cpu::block_columns;
using cpu::block_rows;
using cpu::block_terms;
using cpu::Operand;
using cpu::stored_terms;

// So few rows take more columns at once, because memory is read in longer pieces then.
constexpr int64_t few_rows = 256, columns_of_few_rows = 512;
static_assert(few_rows * columns_of_few_rows <= cpu::most_rows * cpu::most_columns);

// Where sums go: into the caches, added to what is there if need be, or past them.
enum class Written { cached, streamed };

// The gradient of a weight that few rows met: writing it takes as long as computing it, and an expert's is read again
// only once all experts have theirs. What is small may be read at once, by who sums it over ranks.
Written written_of(const at::Tensor& out, bool a_is_transposed, int64_t terms, bool accumulate) {
  constexpr int64_t few_terms = 256, least_elements = int64_t{1} << 17;
  const bool streamed = out.scalar_type() == at::kFloat && a_is_transposed && !accumulate && terms <= few_terms &&
                        out.numel() >= least_elements;
  return streamed ? Written::streamed : Written::cached;
}

struct Part {
  int64_t top, left, rows, columns;
};

// sums [part.rows, part.columns] (+)= a's rows times b's columns.
template <class T, class U>
void multiply_part(float* sums, int64_t sums_stride, const Operand<T>& a, bool copies_a, const Operand<U>& b,
                   const Part& part, int64_t terms, bool accumulate, Written written = Written::cached) {
  cpu::BlockScratch& own = cpu::block_scratch();
  // Where many rows pass by, a block at a time leaves them more of the caches.
  const int64_t columns_of_copy = part.rows <= few_rows ? columns_of_few_rows : block_columns;
  for (int64_t k = 0; k < terms; k += block_terms) {
    const int64_t some = std::min(block_terms, terms - k), in_memory = stored_terms<T>(some, copies_a);
    const bool copies_b = b.transposed || sizeof(T) != sizeof(float) || in_memory > some;
    const T* rows_of_a = a.at(part.top, k);
    int64_t a_stride = a.stride;
    if (copies_a) {
      T* copy = reinterpret_cast<T*>(own.a);
      a_stride = in_memory + 16;
      for (int64_t r = 0; r < part.rows; r += block_rows)
        copy_a(copy + r * a_stride, a_stride, a, part.top + r, k, std::min(block_rows, part.rows - r), some, in_memory);
      rows_of_a = copy;
    }
    for (int64_t c = 0; c < part.columns; c += block_columns) {
      const int64_t columns = std::min(block_columns, part.columns - c);
      T* copy = reinterpret_cast<T*>(own.b);
      const T* block_of_b = copy;
      if constexpr (sizeof(T) != sizeof(float)) {
        if (c % columns_of_copy == 0)
          copy_panels_of_b(copy, b, k, part.left + c, some, std::min(columns_of_copy, part.columns - c));
        copy += c % columns_of_copy / block_columns * cpu::panel_stride;
        block_of_b = copy;
      } else if (copies_b) {
        copy_b(copy, block_columns, b, k, part.left + c, some, columns);
      } else {
        block_of_b = b.at(k, part.left + c);
      }
      if (copies_b) {
        const int64_t copied = stored_terms<T>(some, false);
        std::fill_n(copy + copied * block_columns, (in_memory - copied) * block_columns, T{0});
      }
      for (int64_t r = 0; r < part.rows; r += block_rows) {
        const int64_t rows = std::min(block_rows, part.rows - r);
        float* to = sums + r * sums_stride + c;
        const bool streamed = written == Written::streamed;
        cpu::multiply_block(rows, columns, in_memory, rows_of_a + r * a_stride, a_stride, block_of_b,
                            copies_b ? block_columns : b.stride, streamed ? own.sums : to,
                            streamed ? block_columns : sums_stride, accumulate || k > 0);
        if (streamed) cpu::stream_rows(to, sums_stride, own.sums, block_columns, rows, columns);
      }
    }
  }
}

template <class T, class U>
void multiply_all(const at::Tensor& out, const at::Tensor& a_RM, const at::Tensor& b_MN, bool accumulate) {
  const Operand<T> a(a_RM);
  const Operand<U> b(b_MN);
  const int64_t terms = a_RM.size(1);
  const bool rounds = out.scalar_type() != at::kFloat;
  const Written written = written_of(out, a.transposed, terms, accumulate);
  // Multiplied in pairs where it is, the last term of an odd number would meet the next row's first.
  const bool copies_a = a.transposed || stored_terms<T>(terms, false) != terms;
  const int64_t columns = copies_a && !rounds       ? cpu::most_columns_of_copied
                          : out.size(0) <= few_rows ? columns_of_few_rows
                                                    : cpu::most_columns;
  const int64_t down = (out.size(0) + cpu::most_rows - 1) / cpu::most_rows,
                across = (out.size(1) + columns - 1) / columns;
  cpu::for_tasks(down * across, [&](int64_t i) {
    Part part{i / across * cpu::most_rows, i % across * columns, 0, 0};
    part.rows = std::min(cpu::most_rows, out.size(0) - part.top);
    part.columns = std::min(columns, out.size(1) - part.left);
    const int64_t first = part.top * out.stride(0) + part.left;
    if (!rounds) {
      multiply_part(cpu::data<float>(out) + first, out.stride(0), a, copies_a, b, part, terms, accumulate, written);
    } else {
      float* sums = cpu::block_scratch().sums;
      multiply_part(sums, columns, a, copies_a, b, part, terms, false);
      cpu::round_rows(cpu::data<uint16_t>(out) + first, out.stride(0), sums, columns, part.rows, part.columns,
                      accumulate);
    }
    at::native::cpublas::brgemm_release(sizeof(T) != sizeof(float));  // the tiles of AMX
  });
}

void check_operand(const char* name, const at::Tensor& matrix) {
  check_invariant(matrix.stride(1) == 1 || matrix.stride(0) == 1 || matrix.size(1) <= 1 || matrix.size(0) <= 1,
                  "blocked_product: neither rows nor columns of {} are contiguous", name);
}

}  // namespace

bool cpu::multiplies_in_blocks(at::ScalarType dtype) {
  static const bool has_avx512 =
      at::hasMKLDNN() && cpu_has({"avx512_f", "avx512_bw", "avx512_dq", "avx512_vl"});  // what the kernels ask for
  static const bool has_bf16 = has_avx512 && (cpu_has({"avx512_bf16"}) || cpu_has({"amx_bf16"}));
  return dtype == at::kFloat ? has_avx512 : dtype == at::kBFloat16 && has_bf16;
}

void cpu::blocked_product(at::Tensor out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  RECORD_FUNCTION("conclave::product", c10::ArrayRef<const c10::IValue>());  // for a trace of steps
  check_operand("a", a);
  check_operand("b", b);
  if (out.numel() == 0) return;
  if (a.size(1) == 0) {
    if (!accumulate) out.zero_();
    return;
  }
  if (turns_product(a, b)) return turned_product(out, a, b, accumulate);
  if (a.scalar_type() == at::kFloat) return multiply_all<float, float>(out, a, b, accumulate);
  with_elements_of(b, [&](auto element) { multiply_all<uint16_t, decltype(element)>(out, a, b, accumulate); });
}

}  // namespace conclave

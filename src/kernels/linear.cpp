#include "kernels/linear.h"

#include <ATen/ATen.h>

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/cpu.h"
#include "kernels/product.h"

namespace conclave {

namespace {

// A matrix whose rows lie apart by any stride: BLAS reads and writes such a matrix in place.
void check_matrix(const char* op, const char* name, const at::Tensor& tensor, int64_t rows, int64_t columns) {
  check_invariant(tensor.defined() && tensor.dim() == 2, "{}: {} is not a matrix", op, name);
  check_invariant(tensor.size(0) == rows && tensor.size(1) == columns, "{}: {} has sizes {}x{}, expected {}x{}", op,
                  name, tensor.size(0), tensor.size(1), rows, columns);
  check_invariant(columns <= 1 || tensor.stride(1) == 1, "{}: the last dim of {} has stride {}, expected 1", op, name,
                  tensor.stride(1));
}

void check_same_dtype(const char* op, const at::Tensor& a, const at::Tensor& b) {
  check_invariant(a.scalar_type() == b.scalar_type(), "{}: dtypes differ: {} and {}", op,
                  c10::toString(a.scalar_type()), c10::toString(b.scalar_type()));
}

void check_forward(const char* op, const at::Tensor& y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM) {
  check_invariant(x_RM.dim() == 2 && w_NM.dim() == 2, "{}: x and w must be matrices", op);
  check_matrix(op, "x", x_RM, x_RM.size(0), w_NM.size(1));
  check_matrix(op, "w", w_NM, w_NM.size(0), w_NM.size(1));
  check_matrix(op, "y", y_RN, x_RM.size(0), w_NM.size(0));
  check_same_dtype(op, x_RM, w_NM);
  check_same_dtype(op, x_RM, y_RN);
}

// How large the tiles are in which a product on the CPU is computed, each by one thread. Fixed sizes: a library that
// divides a product among threads itself rounds differently for each number of them. A tile is large enough to run at
// the speed of the whole.
struct TileSize {
  int64_t rows, columns;
};
constexpr TileSize square = {512, 512};
// For oneDNN, which is given contiguous operands only (ATen copies others): whole rows of b, but for very long ones.
constexpr TileSize short_and_long = {256, 4096}, long_rows = {512, 4096};

// MKL packs the few rows of a anew for each tile, so a thread alone takes longer ones (up to 8 % of a step's products);
// an element is the same sum either way.
TileSize tiles_of_mkl(const at::Tensor& out) {
  return out.size(0) <= square.rows && at::get_num_threads() == 1 ? long_rows : square;
}

// f(tile of out, its rows of a, its columns of b) over out = a b.
template <class F>
void for_tiles(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, TileSize tile, const F& f) {
  if (!out.is_cpu()) return f(out, a, b);
  const int64_t rows = out.size(0), columns = out.size(1);
  const int64_t down = (rows + tile.rows - 1) / tile.rows, across = (columns + tile.columns - 1) / tile.columns;
  cpu::for_tasks(down * across, [&](int64_t i) {
    const int64_t top = i / across * tile.rows, left = i % across * tile.columns;
    const int64_t height = std::min(tile.rows, rows - top), width = std::min(tile.columns, columns - left);
    f(out.narrow(0, top, height).narrow(1, left, width), a.narrow(0, top, height), b.narrow(1, left, width));
  });
}

// y = x w^T, or y +=.
void multiply_forward(const at::Tensor& y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM, bool accumulate) {
  const bool by_onednn = multiplies_by_onednn(y_RN.device(), y_RN.scalar_type());
  for_tiles(y_RN, x_RM, w_NM.t(), by_onednn ? square : tiles_of_mkl(y_RN),
            [&](const at::Tensor& tile, const at::Tensor& rows, const at::Tensor& columns) {
              product(tile, rows, columns, accumulate);
            });
}

// grad_x = grad_y w, or grad_x +=.
void multiply_backward(const at::Tensor& grad_x_RM, const at::Tensor& grad_y_RN, const at::Tensor& w_NM,
                       bool accumulate) {
  const bool by_onednn = multiplies_by_onednn(grad_x_RM.device(), grad_x_RM.scalar_type());
  for_tiles(grad_x_RM, grad_y_RN, w_NM, by_onednn ? short_and_long : tiles_of_mkl(grad_x_RM),
            [&](const at::Tensor& tile, const at::Tensor& rows, const at::Tensor& columns) {
              product(tile, rows, columns, accumulate);
            });
}

// grad_w = grad_y^T x, or grad_w +=, where grad_w may be wider than the product.
void multiply_weight(const at::Tensor& grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM,
                     bool accumulate) {
  const bool by_onednn = multiplies_by_onednn(x_RM.device(), x_RM.scalar_type());
  for_tiles(grad_w_NM, grad_y_RN.t(), x_RM, by_onednn ? long_rows : square,
            [&](const at::Tensor& tile, const at::Tensor& rows, const at::Tensor& columns) {
              // Columns of grad_y are copied as such: ATen would copy them one by one.
              const at::Tensor a = by_onednn ? rows.t().contiguous().t() : rows;
              if (a.scalar_type() == tile.scalar_type()) return product(tile, a, columns, accumulate);
              // No library multiplies bf16 into fp32 on every device we run on: the product is rounded to bf16 once.
              const at::Tensor rounded = at::empty(tile.sizes(), a.options());
              product(rounded, a, columns, false);
              if (!accumulate)
                tile.copy_(rounded);
              else if (tile.is_cpu())
                cpu::add_bf16(tile, rounded);
              else
                tile.add_(rounded);
            });
}

}  // namespace

void linear_forward(at::Tensor y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM) {
  const KernelScope timed(Phase::products);
  check_forward("linear_forward", y_RN, x_RM, w_NM);
  if (x_RM.size(0) == 0) return;
  multiply_forward(y_RN, x_RM, w_NM, false);
}

void linear_forward_add(at::Tensor y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM) {
  const KernelScope timed(Phase::products);
  check_forward("linear_forward_add", y_RN, x_RM, w_NM);
  if (x_RM.size(0) == 0) return;
  multiply_forward(y_RN, x_RM, w_NM, true);
}

void linear_backward_input(at::Tensor grad_x_RM, const at::Tensor& grad_y_RN, const at::Tensor& w_NM) {
  const KernelScope timed(Phase::products);
  check_forward("linear_backward_input", grad_y_RN, grad_x_RM, w_NM);
  if (grad_y_RN.size(0) == 0) return;
  multiply_backward(grad_x_RM, grad_y_RN, w_NM, false);
}

void linear_backward_input_add(at::Tensor grad_x_RM, const at::Tensor& grad_y_RN, const at::Tensor& w_NM) {
  const KernelScope timed(Phase::products);
  check_forward("linear_backward_input_add", grad_y_RN, grad_x_RM, w_NM);
  if (grad_y_RN.size(0) == 0) return;
  multiply_backward(grad_x_RM, grad_y_RN, w_NM, true);
}

void linear_backward_weight(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM,
                            bool accumulate) {
  const KernelScope timed(Phase::products);
  constexpr auto op = "linear_backward_weight";
  check_invariant(grad_y_RN.dim() == 2 && x_RM.dim() == 2, "{}: grad_y and x must be matrices", op);
  check_matrix(op, "grad_y", grad_y_RN, x_RM.size(0), grad_y_RN.size(1));
  check_matrix(op, "x", x_RM, x_RM.size(0), x_RM.size(1));
  check_matrix(op, "grad_w", grad_w_NM, grad_y_RN.size(1), x_RM.size(1));
  check_same_dtype(op, grad_y_RN, x_RM);
  check_invariant(grad_w_NM.scalar_type() == wide_dtype(x_RM.scalar_type()), "{}: grad_w is {}", op,
                  c10::toString(grad_w_NM.scalar_type()));
  if (x_RM.size(0) == 0) {
    if (!accumulate) grad_w_NM.zero_();
  } else {
    multiply_weight(grad_w_NM, grad_y_RN, x_RM, accumulate);
  }
}

}  // namespace conclave

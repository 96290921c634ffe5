#include "kernels/linear.h"

#include <ATen/ATen.h>

#include "base/step_clock.h"
#include "kernels/blocked_product.h"
#include "kernels/check.h"
#include "kernels/cpu.h"
#include "kernels/cuda_kernels.h"
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

bool is_rounded_when_read(const at::Tensor& x_RM, const at::Tensor& w_NM) {
  return x_RM.scalar_type() == at::kBFloat16 && w_NM.scalar_type() == at::kFloat;
}

void check_forward(const char* op, const at::Tensor& y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM) {
  check_invariant(x_RM.dim() == 2 && w_NM.dim() == 2, "{}: x and w must be matrices", op);
  check_matrix(op, "x", x_RM, x_RM.size(0), w_NM.size(1));
  check_matrix(op, "w", w_NM, w_NM.size(0), w_NM.size(1));
  check_matrix(op, "y", y_RN, x_RM.size(0), w_NM.size(0));
  if (!is_rounded_when_read(x_RM, w_NM)) check_same_dtype(op, x_RM, w_NM);
  check_same_dtype(op, x_RM, y_RN);
}

// f(tile of out, its rows of a, its columns of b) over out = a b. On the CPU in tiles of a fixed size, each multiplied
// by one thread: a library that divides a product among threads itself rounds differently for each number of them. A
// tile is large enough to run at the speed of the whole. A thread alone takes few rows in longer tiles, because MKL
// packs the rows anew for each (up to 8 % of a step's products); an element is the same sum either way.
enum class Tiles { square, long_for_few_rows };
template <class F>
void for_tiles(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, Tiles tiles, const F& f) {
  if (!out.is_cpu() || computes_as_cuda(out)) return f(out, a, b);
  constexpr int64_t side = 512, few_rows = 512, long_side = 4096;
  const int64_t rows = out.size(0), columns = out.size(1);
  const bool is_long = tiles == Tiles::long_for_few_rows && rows <= few_rows && at::get_num_threads() == 1;
  const int64_t across = is_long ? long_side : side;
  const int64_t tiles_down = (rows + side - 1) / side, tiles_across = (columns + across - 1) / across;
  cpu::for_tasks(tiles_down * tiles_across, [&](int64_t tile) {
    const int64_t top = tile / tiles_across * side, left = tile % tiles_across * across;
    const int64_t height = std::min(side, rows - top), width = std::min(across, columns - left);
    f(out.narrow(0, top, height).narrow(1, left, width), a.narrow(0, top, height), b.narrow(1, left, width));
  });
}

bool in_blocks(const at::Tensor& a) {
  return a.is_cpu() && !computes_as_cuda(a) && cpu::multiplies_in_blocks(a.scalar_type());
}

// out = a b, or out += a b.
void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  if (in_blocks(a)) return cpu::blocked_product(out, a, b, accumulate);
  for_tiles(out, a, b.to(a.scalar_type()), Tiles::long_for_few_rows,
            [&](const at::Tensor& tile, const at::Tensor& rows, const at::Tensor& columns) {
              product(tile, rows, columns, accumulate);
            });
}

// grad_w in fp32 of bf16. A library that does not mix the two rounds each tile's product to bf16 once.
void add_wider_weight_gradient(const at::Tensor& grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM,
                               bool accumulate) {
  if (const CudaKernels* cuda = cuda_kernels(x_RM))
    return cuda->weight_gradient(grad_w_NM, grad_y_RN, x_RM, accumulate);
  const at::Tensor grad_y_NR = grad_y_RN.t();
  if (in_blocks(x_RM)) return cpu::blocked_product(grad_w_NM, grad_y_NR, x_RM, accumulate);
  for_tiles(grad_w_NM, grad_y_NR, x_RM, Tiles::square,
            [&](const at::Tensor& tile, const at::Tensor& rows, const at::Tensor& columns) {
              const at::Tensor rounded = at::empty(tile.sizes(), rows.options());
              product(rounded, rows, columns, /*accumulate=*/false);
              accumulate ? tile.add_(rounded) : tile.copy_(rounded);
            });
}

}  // namespace

void linear_forward(at::Tensor y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM) {
  const KernelScope timed(Phase::products);
  check_forward("linear_forward", y_RN, x_RM, w_NM);
  if (x_RM.size(0) == 0) return;
  multiply(y_RN, x_RM, w_NM.t(), false);
}

void linear_forward_add(at::Tensor y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM) {
  const KernelScope timed(Phase::products);
  check_forward("linear_forward_add", y_RN, x_RM, w_NM);
  if (x_RM.size(0) == 0) return;
  multiply(y_RN, x_RM, w_NM.t(), true);
}

void linear_backward_input(at::Tensor grad_x_RM, const at::Tensor& grad_y_RN, const at::Tensor& w_NM) {
  const KernelScope timed(Phase::products);
  check_forward("linear_backward_input", grad_y_RN, grad_x_RM, w_NM);
  if (grad_y_RN.size(0) == 0) return;
  multiply(grad_x_RM, grad_y_RN, w_NM, false);
}

void linear_backward_input_add(at::Tensor grad_x_RM, const at::Tensor& grad_y_RN, const at::Tensor& w_NM) {
  const KernelScope timed(Phase::products);
  check_forward("linear_backward_input_add", grad_y_RN, grad_x_RM, w_NM);
  if (grad_y_RN.size(0) == 0) return;
  multiply(grad_x_RM, grad_y_RN, w_NM, true);
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
  } else if (x_RM.scalar_type() != grad_w_NM.scalar_type()) {
    add_wider_weight_gradient(grad_w_NM, grad_y_RN, x_RM, accumulate);
  } else {
    multiply(grad_w_NM, grad_y_RN.t(), x_RM, accumulate);
  }
}

}  // namespace conclave

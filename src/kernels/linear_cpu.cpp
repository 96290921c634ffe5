// Products on the CPU: in blocks of our own where the processor has what they take, else in tiles of a library's.
#include <ATen/ATen.h>

#include "kernels/blocked_product.h"
#include "kernels/cpu.h"
#include "kernels/product.h"

namespace conclave {
namespace {

// f(tile of out, its rows of a, its columns of b) over out = a b, in tiles of a fixed size, each multiplied by one
// thread: a library that divides a product among threads itself rounds differently for each number of them. A tile is
// large enough to run at the speed of the whole. A thread alone takes few rows in longer tiles, because MKL packs the
// rows anew for each (up to 8 % of a step's products); an element is the same sum either way.
enum class Tiles { square, long_for_few_rows };
template <class F>
void for_tiles(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, Tiles tiles, const F& f) {
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

}  // namespace

void cpu::multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  if (multiplies_in_blocks(a.scalar_type())) return blocked_product(out, a, b, accumulate);
  for_tiles(out, a, b.to(a.scalar_type()), Tiles::long_for_few_rows,
            [&](const at::Tensor& tile, const at::Tensor& rows, const at::Tensor& columns) {
              product(tile, rows, columns, accumulate);
            });
}

// A library that does not mix the two dtypes rounds each tile's product to bf16 once.
void cpu::weight_gradient(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM, bool accumulate) {
  const at::Tensor grad_y_NR = grad_y_RN.t();
  if (multiplies_in_blocks(x_RM.scalar_type())) return blocked_product(grad_w_NM, grad_y_NR, x_RM, accumulate);
  for_tiles(grad_w_NM, grad_y_NR, x_RM, Tiles::square,
            [&](const at::Tensor& tile, const at::Tensor& rows, const at::Tensor& columns) {
              const at::Tensor rounded = at::empty(tile.sizes(), rows.options());
              product(rounded, rows, columns, /*accumulate=*/false);
              accumulate ? tile.add_(rounded) : tile.copy_(rounded);
            });
}

}  // namespace conclave

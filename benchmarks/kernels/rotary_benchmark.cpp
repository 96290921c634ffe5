#include "kernels/rotary.h"

#include "kernel_benchmark.h"

namespace conclave {
namespace {

using Rotary = decltype(rotary_forward_);
void rotate(benchmark::State& state, Rotary* op, at::ScalarType dtype) {
  const int64_t heads = 20, head_dim = 64;
  const RotaryTable table = rotary_table(512, {.dims = head_dim}, at::kCPU);
  const at::Tensor qkv = random_tensor({tokens, heads * head_dim}, dtype);
  measure(state, bytes_of({qkv, qkv}), [&] { op(qkv, heads, head_dim, table); });
}
const bool added = add("rotary_forward", rotate, rotary_forward_, reference::rotary_forward_);

}  // namespace
}  // namespace conclave

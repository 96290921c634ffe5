#include "kernels/permute.h"

#include "kernel_benchmark.h"

namespace conclave {
namespace {

constexpr int64_t hidden = 1024, top_k = 2, rows = tokens * top_k;

using Gather = decltype(gather_rows);
void gather(benchmark::State& state, Gather* op, at::ScalarType dtype) {
  const at::Tensor from = random_tensor({tokens, hidden}, dtype), index = at::randint(tokens, {rows}, at::kInt);
  const at::Tensor out = at::empty({rows, hidden}, from.options());
  measure(state, bytes_of({out, out}), [&] { op(out, from, index); });
}
const bool added_gather = add("gather_rows", gather, gather_rows, reference::gather_rows);

using Pack = decltype(pack_rows);
void pack(benchmark::State& state, Pack* op, at::ScalarType dtype) {
  const at::Tensor from = random_tensor({tokens, hidden}, dtype), index = at::randint(tokens, {rows}, at::kInt);
  const at::Tensor messages = at::empty({rows, message_bytes(hidden, dtype)}, at::kByte), weights = at::rand({tokens});
  measure(state, bytes_of({messages, messages}), [&] { op(messages, from, index, weights, index); });
}
const bool added_pack = add("pack_rows", pack, pack_rows, reference::pack_rows);

using Combine = decltype(combine_rows);
void combine(benchmark::State& state, Combine* op, at::ScalarType dtype) {
  const at::Tensor from = random_tensor({rows, hidden}, dtype);
  const at::Tensor row_of_choice = at::randperm(rows, at::kInt).view({tokens, top_k});
  const at::Tensor out = at::zeros({tokens, hidden}, from.options());
  measure(state, bytes_of({from, out, out}), [&] { op(out, out, from, row_of_choice); });
}
const bool added_combine = add("combine_rows", combine, combine_rows, reference::combine_rows);

}  // namespace
}  // namespace conclave

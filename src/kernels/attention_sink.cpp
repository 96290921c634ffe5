#include "kernels/attention_sink.h"

#include <ATen/ATen.h>

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {

namespace {

void check_sink(const char* op, const at::Tensor& out_TN, const at::Tensor& logsumexp_BNS, const at::Tensor& sink_N) {
  check_dims(op, "out", out_TN, 2);
  check_dims(op, "logsumexp", logsumexp_BNS, 3);
  const int64_t heads = logsumexp_BNS.size(1);
  check_tensor(op, "logsumexp", logsumexp_BNS, logsumexp_BNS.sizes(), wide_dtype(out_TN.scalar_type()));
  check_invariant(logsumexp_BNS.size(0) * logsumexp_BNS.size(2) == out_TN.size(0), "{}: {} rows, {} x {} logsumexps",
                  op, out_TN.size(0), logsumexp_BNS.size(0), logsumexp_BNS.size(2));
  check_invariant(heads > 0 && out_TN.size(1) % heads == 0, "{}: {} heads in rows of {}", op, heads, out_TN.size(1));
  check_tensor(op, "sink", sink_N, {heads}, out_TN.scalar_type());
}

// [B, N, S, D] of rows [B * S, N * D].
at::Tensor heads_of(const at::Tensor& rows_TN, const at::Tensor& logsumexp_BNS) {
  const int64_t batch = logsumexp_BNS.size(0), heads = logsumexp_BNS.size(1), sequence = logsumexp_BNS.size(2);
  return rows_TN.view({batch, sequence, heads, rows_TN.size(1) / heads}).transpose(1, 2);
}

at::Tensor of_heads(const at::Tensor& sink_N, const at::Tensor& logsumexp_BNS) {
  return sink_N.to(logsumexp_BNS.scalar_type()).view({1, -1, 1});
}

}  // namespace

void sink_forward_(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& sink_N) {
  const KernelScope timed(Phase::attention);
  check_sink("sink_forward_", out_TN, logsumexp_BNS, sink_N);
  kernels_of(out_TN).sink_forward_(out_TN, logsumexp_BNS, sink_N);
}

void sink_backward(at::Tensor grad_sink_N, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                   const at::Tensor& logsumexp_BNS, const at::Tensor& sink_N) {
  const KernelScope timed(Phase::attention);
  constexpr auto op = "sink_backward";
  check_sink(op, out_TN, logsumexp_BNS, sink_N);
  check_tensor(op, "grad_out", grad_out_TN, out_TN.sizes(), out_TN.scalar_type());
  check_tensor(op, "grad_sink", grad_sink_N, sink_N.sizes(), wide_dtype(sink_N.scalar_type()));
  kernels_of(out_TN).sink_backward(grad_sink_N, grad_out_TN, out_TN, logsumexp_BNS, sink_N);
}

void reference::sink_forward_(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& sink_N) {
  const at::Tensor with_sink = at::logaddexp(logsumexp_BNS, of_heads(sink_N, logsumexp_BNS));
  const at::Tensor out = heads_of(out_TN, logsumexp_BNS);
  out.copy_(out.to(logsumexp_BNS.scalar_type()) * at::exp(logsumexp_BNS - with_sink).unsqueeze(-1));
  logsumexp_BNS.copy_(with_sink);
}

void reference::sink_backward(at::Tensor grad_sink_N, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                              const at::Tensor& logsumexp_BNS, const at::Tensor& sink_N) {
  const at::ScalarType wide = logsumexp_BNS.scalar_type();
  const at::Tensor delta =
      (heads_of(grad_out_TN, logsumexp_BNS).to(wide) * heads_of(out_TN, logsumexp_BNS).to(wide)).sum(-1);
  const at::Tensor share = at::exp(of_heads(sink_N, logsumexp_BNS) - logsumexp_BNS);
  grad_sink_N.sub_((share * delta).sum(at::IntArrayRef{0, 2}));
}

}  // namespace conclave

#include "kernels/attention.h"

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {

namespace {

void check_attention(const char* op, const at::Tensor& out_TN, const at::Tensor& logsumexp_BNS,
                     const at::Tensor& qkv_TM, const AttentionShape& shape) {
  check_invariant(shape.batch >= 0 && shape.sequence > 0 && shape.kv_heads > 0 && shape.head_dim > 0,
                  "{}: batch {}, sequence {}, kv_heads {}, head_dim {}", op, shape.batch, shape.sequence,
                  shape.kv_heads, shape.head_dim);
  check_invariant(shape.heads > 0 && shape.heads % shape.kv_heads == 0, "{}: {} heads, {} key/value heads", op,
                  shape.heads, shape.kv_heads);
  check_invariant(shape.window.value_or(1) > 0, "{}: window {}", op, shape.window.value_or(1));
  check_invariant(shape.value_dim() > 0 && shape.score_scale() > 0, "{}: values of {}, scale {}", op, shape.value_dim(),
                  shape.score_scale());
  const int64_t tokens = shape.batch * shape.sequence;
  if (const Documents* documents = shape.documents) {
    check_invariant(documents->sequence == shape.sequence, "{}: documents in sequences of {}, not {}", op,
                    documents->sequence, shape.sequence);
    check_tensor(op, "documents' positions", documents->position_T, {tokens}, at::kInt);
  }
  const at::ScalarType dtype = qkv_TM.scalar_type();
  check_tensor(op, "qkv", qkv_TM, {tokens, shape.packed_columns()}, dtype);
  check_tensor(op, "out", out_TN, {tokens, shape.out_columns()}, dtype);
  check_tensor(op, "logsumexp", logsumexp_BNS, {shape.batch, shape.heads, shape.sequence}, wide_dtype(dtype));
}

}  // namespace

void attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                       const AttentionShape& shape) {
  const KernelScope timed(Phase::attention);
  check_attention("attention_forward", out_TN, logsumexp_BNS, qkv_TM, shape);
  kernels_of(qkv_TM).attention_forward(out_TN, logsumexp_BNS, qkv_TM, shape);
}

void attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape) {
  const KernelScope timed(Phase::attention);
  constexpr auto op = "attention_backward";
  check_attention(op, out_TN, logsumexp_BNS, qkv_TM, shape);
  check_tensor(op, "grad_out", grad_out_TN, out_TN.sizes(), out_TN.scalar_type());
  check_tensor(op, "grad_qkv", grad_qkv_TM, qkv_TM.sizes(), qkv_TM.scalar_type());
  kernels_of(qkv_TM).attention_backward(grad_qkv_TM, grad_out_TN, out_TN, logsumexp_BNS, qkv_TM, shape);
}

}  // namespace conclave

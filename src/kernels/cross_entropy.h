// Cross-entropy over a chunk of tokens, its gradient written over the logits, so that a chunk's logits are the only
// [tokens, V] tensor alive. Targets are int64 [C]; -100 is ignored (Hugging Face's ignore index).
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

// Sum over tokens of -log softmax(logits)[target], in double, tokens in order. Arithmetic in fp32; logits fp32 or bf16,
// contiguous.
double cross_entropy(const at::Tensor& logits_CV, const at::Tensor& targets_C);

// The same, and logits become scale * (softmax(logits) - onehot(target)); rows of ignored targets become 0.
double cross_entropy_with_gradient_(at::Tensor logits_CV, const at::Tensor& targets_C, double scale);

// The same two with the sum as one double where the logits are, so that nobody has to wait for it.
at::Tensor cross_entropy_sum(const at::Tensor& logits_CV, const at::Tensor& targets_C);
at::Tensor cross_entropy_sum_with_gradient_(at::Tensor logits_CV, const at::Tensor& targets_C, double scale);

namespace reference {
double cross_entropy(const at::Tensor& logits_CV, const at::Tensor& targets_C);
double cross_entropy_with_gradient_(at::Tensor logits_CV, const at::Tensor& targets_C, double scale);
}  // namespace reference

}  // namespace conclave

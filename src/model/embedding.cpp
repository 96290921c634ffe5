#include "model/embedding.h"

#include "kernels/embedding.h"
#include "memory/memory_category.h"
#include "model/declarations.h"

namespace conclave {
namespace {

constexpr const char* table_name = "embed_tokens";

}  // namespace

void Embedding::declare(const ModelConfig& config, UnitDeclaration& unit) {
  unit.parameters.push_back(matrix(config, table_name, {config.vocab_size, config.hidden_size}));
}

Embedding::Embedding(const UnitDeclaration& unit) : table_VH_(unit, table_name) {}

at::Tensor Embedding::forward(const UnitWeights& weights, const MicroBatch& batch, at::ScalarType dtype) const {
  MemoryScope scope(MemoryCategory::activations);
  const at::Tensor& table_VH = table_VH_(weights);
  at::Tensor hidden_TH = at::empty({batch.tokens(), table_VH.size(1)}, table_VH.options().dtype(dtype));
  embedding_forward(hidden_TH, table_VH, batch.token_T);
  return hidden_TH;
}

void Embedding::backward(UnitGradients& gradients, const at::Tensor& grad_TH, const MicroBatch& batch) const {
  Gradient& gradient = table_VH_(gradients);
  if (gradient.is_wanted()) embedding_backward(gradient.zeroed(), grad_TH, batch.token_T);
}

}  // namespace conclave

// ATen's flash kernel of the CPU over strided views of the packed rows; fewer key/value heads are its own affair.
#include <ATen/ATen.h>

#include <limits>

#include "kernels/attention.h"
#include "kernels/cpu.h"

namespace conclave {

namespace {

// Heads [first, first + heads) of the packed rows as [B, heads, S, D], without a copy.
at::Tensor heads_of(const at::Tensor& packed_TM, const AttentionShape& shape, int64_t first, int64_t heads) {
  return packed_TM.narrow(1, first * shape.head_dim, heads * shape.head_dim)
      .view({shape.batch, shape.sequence, heads, shape.head_dim})
      .transpose(1, 2);
}

struct PackedHeads {
  at::Tensor query, key, value;
};

PackedHeads split(const at::Tensor& packed_TM, const AttentionShape& shape) {
  return {heads_of(packed_TM, shape, 0, shape.heads), heads_of(packed_TM, shape, shape.heads, shape.kv_heads),
          heads_of(packed_TM, shape, shape.heads + shape.kv_heads, shape.kv_heads)};
}

// One call of the flash kernel: queries [first_query, last_query) over keys [first_key, last_query). Without a window
// there is one block, the whole sequence, masked by the kernel itself.
struct Block {
  int64_t first_query, last_query, first_key;
  std::optional<at::Tensor> mask;  // added to the scores: 0 or -infinity; none: causal

  int64_t queries() const { return last_query - first_query; }
  int64_t keys() const { return last_query - first_key; }
};

// With a window W: blocks of C queries over the at most W - 1 + C keys they can see, so that no S x S matrix arises.
// All blocks share one mask: with keys counted from W - 1 before the block's first query, query i sees keys i .. i + W
// - 1.
std::vector<Block> blocks_of(const AttentionShape& shape, at::ScalarType dtype) {
  const int64_t sequence = shape.sequence, window = shape.window.value_or(sequence);
  if (window >= sequence) return {{0, sequence, 0, std::nullopt}};
  const int64_t length = std::min(sequence, std::clamp<int64_t>(window, 128, 512));
  const at::Tensor query = at::arange(length).unsqueeze(1), key = at::arange(window - 1 + length).unsqueeze(0);
  const at::Tensor hidden = at::logical_or(key.lt(query), key.ge(query + window));
  const at::Tensor mask = at::zeros({length, window - 1 + length}, at::TensorOptions().dtype(dtype))
                              .masked_fill_(hidden, -std::numeric_limits<double>::infinity());
  std::vector<Block> blocks;
  for (int64_t first = 0; first < sequence; first += length) {
    Block block{first, std::min(sequence, first + length), std::max<int64_t>(0, first - (window - 1)), std::nullopt};
    const int64_t skipped = block.first_key - (first - (window - 1));  // keys before the sequence's begin
    block.mask = mask.narrow(0, 0, block.queries()).narrow(1, skipped, block.keys());
    blocks.push_back(std::move(block));
  }
  return blocks;
}

PackedHeads narrow(const PackedHeads& heads, const Block& block) {
  return {heads.query.narrow(2, block.first_query, block.queries()), heads.key.narrow(2, block.first_key, block.keys()),
          heads.value.narrow(2, block.first_key, block.keys())};
}

}  // namespace

void cpu::attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                            const AttentionShape& shape) {
  if (shape.batch == 0) return;
  const PackedHeads all = split(qkv_TM, shape);
  const at::Tensor out_BNSD = heads_of(out_TN, shape, 0, shape.heads);
  for (const Block& block : blocks_of(shape, qkv_TM.scalar_type())) {
    const PackedHeads heads = narrow(all, block);
    const auto [out, logsumexp] = at::_scaled_dot_product_flash_attention_for_cpu(
        heads.query, heads.key, heads.value, /*dropout_p=*/0, /*is_causal=*/!block.mask, block.mask);
    out_BNSD.narrow(2, block.first_query, block.queries()).copy_(out);
    logsumexp_BNS.narrow(2, block.first_query, block.queries()).copy_(logsumexp);
  }
}

void cpu::attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                             const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape) {
  if (shape.batch == 0) return;
  const PackedHeads all = split(qkv_TM, shape), grads = split(grad_qkv_TM, shape);
  const at::Tensor out_BNSD = heads_of(out_TN, shape, 0, shape.heads);
  const at::Tensor grad_out_BNSD = heads_of(grad_out_TN, shape, 0, shape.heads);
  const std::vector<Block> blocks = blocks_of(shape, qkv_TM.scalar_type());
  if (blocks.size() > 1) grad_qkv_TM.zero_();  // blocks share keys, and add up
  for (const Block& block : blocks) {
    const PackedHeads heads = narrow(all, block), grad = narrow(grads, block);
    const auto queries = [&](const at::Tensor& t) { return t.narrow(2, block.first_query, block.queries()); };
    const auto [grad_query, grad_key, grad_value] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        queries(grad_out_BNSD), heads.query, heads.key, heads.value, queries(out_BNSD), queries(logsumexp_BNS),
        /*dropout_p=*/0, /*is_causal=*/!block.mask, block.mask);
    grad.query.copy_(grad_query);
    if (blocks.size() > 1) {
      grad.key.add_(grad_key);
      grad.value.add_(grad_value);
    } else {
      grad.key.copy_(grad_key);
      grad.value.copy_(grad_value);
    }
  }
}

}  // namespace conclave

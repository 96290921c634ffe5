#include "device/paper_attention.h"

#include <algorithm>

#include "base/error.h"
#include "device/paper_costs.h"

namespace conclave::paper {
namespace {

constexpr int64_t fp32 = 4;

enum class Direction { forward, backward };

// Sizes of one call.
struct Sizes {
  Sizes(const at::Tensor& qkv_TM, const AttentionShape& shape)
      : shape(shape),
        item(static_cast<int64_t>(qkv_TM.element_size())),
        tokens(shape.batch * shape.sequence),
        queries(tokens * shape.heads * shape.head_dim),
        keys(tokens * shape.kv_heads * shape.head_dim),
        values(tokens * shape.kv_heads * shape.value_dim()),
        outs(tokens * shape.out_columns()) {}

  const AttentionShape& shape;
  int64_t item;  // bytes of an element
  int64_t tokens;
  int64_t queries, keys, values, outs;  // elements
};

// Of kernels/attention_reference.cpp: fp32 tensors of all scores [B, heads, S, S], and of the heads in fp32.
int64_t reference_bytes(const Sizes& of, Direction direction) {
  const int64_t scores = of.tokens * of.shape.heads * of.shape.sequence * fp32;
  const bool widens = of.item != fp32;
  // The last product has its result, and keys (forward: values) repeated for each query head.
  const int64_t values = (2 * of.outs + (widens ? of.values : 0)) * fp32;
  const int64_t keys = (2 * of.queries + (widens ? of.keys : 0)) * fp32;
  if (direction == Direction::forward) return std::max(3 * scores, 2 * scores + values);
  return std::max(6 * scores, 4 * scores + keys) + (widens ? 2 * of.outs * fp32 : 0);
}

// ATen's flash attention returns tensors of its own, and takes heads of one dim only: the smaller ones are copied with
// zeros behind them. Backward it sums the queries' gradient in fp32, in as many parts
// as it takes for a fixed order with all of a GPU's processors at work, and where query heads share a key, each has a
// gradient of it.
int64_t flash_bytes(const Sizes& of, Direction direction) {
  const AttentionShape& shape = of.shape;
  const int64_t dim = std::max(shape.head_dim, shape.value_dim());
  const int64_t queries = of.tokens * shape.heads * dim, keys = of.tokens * shape.kv_heads * dim;
  const int64_t padded_keys = shape.head_dim < dim ? queries + keys : 0;
  const bool pads_values = shape.value_dim() < dim;
  if (direction == Direction::forward)
    return (queries + padded_keys + (pads_values ? keys : 0)) * of.item + of.tokens * shape.heads * fp32;
  const auto rounded = [](int64_t count, int64_t to) { return (count + to - 1) / to * to; };
  // Of documents it takes each for a sequence, all of which share one tensor with room for a block behind each.
  const Documents* documents = shape.documents;
  const int64_t batch_heads = (documents != nullptr ? documents->count() : shape.batch) * shape.heads;
  const int64_t rows = documents != nullptr ? shape.heads * (of.tokens + 128 * documents->count())
                                            : batch_heads * rounded(shape.sequence, 128);
  const int64_t width = rounded(dim, dim <= 128 ? 32 : 64);
  constexpr int64_t processors = 132;  // of an H100 or H200
  const int64_t sums = (processors + batch_heads - 1) / batch_heads;
  const int64_t of_each_head = shape.heads != shape.kv_heads ? 2 * queries : 0;
  const int64_t padded = padded_keys + (pads_values ? 2 * queries + keys : 0);  // grad_out and out, too
  return (queries + 2 * keys + of_each_head + padded) * of.item + rows * (width * sums + 1) * fp32;
}

// Each thread has a block of scores and the fp32 matrices of its products, and backward the sums over blocks
// (kernels/attention_cpu.cpp).
int64_t cpu_bytes(const Sizes& of, Direction direction) {
  const AttentionShape& shape = of.shape;
  const int64_t group = shape.heads / shape.kv_heads, threads = paper_device().machine().threads;
  const int64_t rows = group * std::min(std::clamp<int64_t>(256 / group, 32, 128), shape.sequence);
  const int64_t keys = std::min<int64_t>(shape.sequence, 512);
  const int64_t of_queries = rows * shape.head_dim * of.item, of_outs = rows * shape.value_dim() * of.item;
  if (direction == Direction::forward) return threads * (rows * (keys + shape.value_dim() + 3) * fp32 + of_queries);
  const int64_t parts = std::clamp<int64_t>(shape.sequence / 256, 1, std::max<int64_t>(1, 16 / shape.kv_heads));
  const int64_t sums = shape.kv_heads * parts * shape.sequence * (shape.head_dim + shape.value_dim());
  return sums * fp32 + threads * (rows * (2 * keys + shape.head_dim + 2) * fp32 + of_queries + of_outs);
}

int64_t temporary_bytes(const Sizes& of, Direction direction) {
  if (!paper_device().machine().is_gpu) return cpu_bytes(of, direction);
  return has_flash_kernel(std::max(of.shape.head_dim, of.shape.value_dim()), of.item) ? flash_bytes(of, direction)
                                                                                      : reference_bytes(of, direction);
}

// Keys that a query sees, on average: causal kernels skip the scores above the diagonal, and those outside the window.
double keys_seen(int64_t rows, const AttentionShape& shape) {
  const auto length = static_cast<double>(rows);
  const auto window = static_cast<double>(shape.window.value_or(rows));
  return window < length ? window * (length - window / 2) / length : length / 2;
}

double score_operations(const Sizes& of) {
  const AttentionShape& shape = of.shape;
  double seen = shape.documents == nullptr ? keys_seen(shape.sequence, shape) : 0;
  for (int64_t document = 0; shape.documents != nullptr && document < shape.documents->count(); ++document) {
    const int64_t rows = shape.documents->end(document) - shape.documents->begin(document);
    seen += keys_seen(rows, shape) * static_cast<double>(rows) / static_cast<double>(of.tokens);
  }
  return 2 * static_cast<double>(of.queries + of.outs) * seen;
}

void attend(const at::Tensor& qkv_TM, const AttentionShape& shape, Direction direction) {
  if (shape.batch == 0) return;
  const Sizes of(qkv_TM, shape);
  const PaperMemory::Part part(paper_device().memory(), "attention");
  const at::Tensor temporaries = at::empty({temporary_bytes(of, direction)}, at::device(at::kMeta).dtype(at::kByte));
  paper_device().clock().attend((direction == Direction::forward ? 1 : 2) * score_operations(of), qkv_TM.scalar_type());
}

}  // namespace

void attention_forward(at::Tensor, at::Tensor, const at::Tensor& qkv_TM, const AttentionShape& shape) {
  attend(qkv_TM, shape, Direction::forward);
}

void attention_backward(at::Tensor, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor& qkv_TM,
                        const AttentionShape& shape) {
  attend(qkv_TM, shape, Direction::backward);
}

void cached_attention(at::Tensor, at::Tensor, const at::Tensor&, std::span<const CachedKeys>, const AttentionShape&) {
  check_invariant(false, "generation has no plan");
}

void sink_forward_(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor&) {
  pass({out_TN, out_TN, logsumexp_BNS, logsumexp_BNS});
}

void sink_backward(at::Tensor grad_sink_N, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                   const at::Tensor& logsumexp_BNS, const at::Tensor&) {
  const at::Tensor partial = room_for_partial_sums(out_TN.size(0), grad_sink_N);
  pass({grad_out_TN, out_TN, logsumexp_BNS});
}

void expand_latent(at::Tensor qkv_TM, const at::Tensor& kv_TX, const at::Tensor& rotary_TR, const LatentHeads& heads) {
  const int64_t written = heads.packed_columns() - heads.count * heads.key_dim();
  pass({qkv_TM.narrow(1, 0, written), kv_TX, rotary_TR});
}

void collect_latent(at::Tensor grad_kv_TX, at::Tensor grad_rotary_TR, const at::Tensor& grad_qkv_TM,
                    const LatentHeads& heads) {
  paper::expand_latent(grad_qkv_TM, grad_kv_TX, grad_rotary_TR, heads);  // reads what that writes
}

}  // namespace conclave::paper

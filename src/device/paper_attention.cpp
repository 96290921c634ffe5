#include "device/paper_attention.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/cuda_rules.h"
#include "device/paper_device.h"

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
        keys(tokens * shape.kv_heads * shape.head_dim) {}

  const AttentionShape& shape;
  int64_t item;  // bytes of an element
  int64_t tokens;
  int64_t queries, keys;  // elements; of values as many as of keys
};

// Of kernels/attention_reference.cpp: fp32 tensors of all scores [B, heads, S, S], and of the heads in fp32.
int64_t reference_bytes(const Sizes& of, Direction direction) {
  const int64_t scores = of.tokens * of.shape.heads * of.shape.sequence * fp32;
  const int64_t queries = of.queries * fp32, keys = of.keys * fp32;
  const bool widens = of.item != fp32;
  // The last product has its result, and keys (forward: values) repeated for each query head.
  const int64_t product = 2 * queries + (widens ? keys : 0);
  if (direction == Direction::forward) return std::max(3 * scores, 2 * scores + product);
  return std::max(6 * scores, 4 * scores + product) + (widens ? 2 * queries : 0);
}

// ATen's flash attention returns tensors of its own. Backward it sums the queries' gradient in fp32, in as many parts
// as it takes for a fixed order with all of a GPU's processors at work, and where query heads share a key, each has a
// gradient of it.
int64_t flash_bytes(const Sizes& of, Direction direction) {
  const AttentionShape& shape = of.shape;
  if (direction == Direction::forward) return of.queries * of.item + of.tokens * shape.heads * fp32;
  const auto rounded = [](int64_t count, int64_t to) { return (count + to - 1) / to * to; };
  const int64_t batch_heads = shape.batch * shape.heads;
  const int64_t rows = batch_heads * rounded(shape.sequence, 128);
  const int64_t width = rounded(shape.head_dim, shape.head_dim <= 128 ? 32 : 64);
  constexpr int64_t processors = 132;  // of an H100 or H200
  const int64_t sums = (processors + batch_heads - 1) / batch_heads;
  const int64_t of_each_head = shape.heads != shape.kv_heads ? 2 * of.queries * of.item : 0;
  return (of.queries + 2 * of.keys) * of.item + rows * (width * sums + 1) * fp32 + of_each_head;
}

// Each thread has a block of scores and the fp32 matrices of its products, and backward the sums over blocks
// (kernels/attention_cpu.cpp).
int64_t cpu_bytes(const Sizes& of, Direction direction) {
  const AttentionShape& shape = of.shape;
  const int64_t group = shape.heads / shape.kv_heads, threads = paper_device().machine().threads;
  const int64_t rows = group * std::min(std::clamp<int64_t>(256 / group, 32, 128), shape.sequence);
  const int64_t keys = std::min<int64_t>(shape.sequence, 512), of_queries = rows * shape.head_dim * of.item;
  if (direction == Direction::forward) return threads * (rows * (keys + shape.head_dim + 3) * fp32 + of_queries);
  const int64_t parts = std::clamp<int64_t>(shape.sequence / 256, 1, std::max<int64_t>(1, 16 / shape.kv_heads));
  const int64_t sums = shape.kv_heads * parts * 2 * shape.sequence * shape.head_dim;
  return sums * fp32 + threads * (rows * (2 * keys + shape.head_dim + 2) * fp32 + 2 * of_queries);
}

int64_t temporary_bytes(const Sizes& of, Direction direction) {
  if (!paper_device().machine().is_gpu) return cpu_bytes(of, direction);
  return has_flash_kernel(of.shape.head_dim, of.item) ? flash_bytes(of, direction) : reference_bytes(of, direction);
}

// Causal kernels skip the scores above the diagonal, and those outside the window.
double score_operations(const Sizes& of) {
  const auto sequence = static_cast<double>(of.shape.sequence);
  const auto window = static_cast<double>(of.shape.window.value_or(of.shape.sequence));
  const double seen = window < sequence ? window * (sequence - window / 2) / sequence : sequence / 2;
  return 4 * static_cast<double>(of.queries) * seen;
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

}  // namespace conclave::paper

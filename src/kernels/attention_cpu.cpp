// Flash attention (Dao, 2022 and 2023) of the CPU: scores are computed and used block by block. Products read the
// tensors' dtype and sum in fp32, as on GPUs: in bf16, probabilities and the gradients of scores are rounded once.
// The query heads of one key/value head are one matrix with its keys, so that products are large enough for full speed.
// A document is computed as if it were alone: its blocks begin with it, and its queries meet its own keys only.
#include <ATen/ATen.h>

#include <limits>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "kernels/attention_rows.h"
#include "kernels/blocked_product.h"
#include "kernels/cpu.h"
#include "kernels/product.h"

namespace conclave {

namespace {

constexpr int64_t rows_of_block = 256, keys_of_block = 512;  // scores of half a MiB: they stay in the core's cache

// Consecutive queries of one document, which are computed at once.
struct Block {
  int64_t document = 0;     // its first row, in the sequence
  int64_t first_query = 0;  // in the document
  int64_t queries = 0;

  int64_t first_row() const { return document + first_query; }  // in the sequence
};

// One key/value head of one document, which begins with a row of the batch, with the query heads that read it. All are
// views.
class HeadGroup {
 public:
  HeadGroup(const AttentionShape& shape, int64_t first_row, int64_t kv_head)
      : shape_(shape), first_row_(first_row), kv_head_(kv_head) {}

  int64_t heads() const { return shape_.heads / shape_.kv_heads; }
  int64_t first_head() const { return kv_head_ * heads(); }

  // [heads, queries, dim] of rows whose first columns are heads of `dim`, one for each query head.
  at::Tensor queries(const at::Tensor& rows_TM, int64_t dim, int64_t first, int64_t count) const {
    return columns(rows_TM, first_head() * dim, heads() * dim, first, count)
        .view({count, heads(), dim})
        .transpose(0, 1);
  }
  // [keys, D] and [keys, V] of the packed projections.
  at::Tensor keys(const at::Tensor& qkv_TM, int64_t first, int64_t count) const {
    return columns(qkv_TM, (shape_.heads + kv_head_) * shape_.head_dim, shape_.head_dim, first, count);
  }
  at::Tensor values(const at::Tensor& qkv_TM, int64_t first, int64_t count) const {
    const int64_t before = (shape_.heads + shape_.kv_heads) * shape_.head_dim;
    return columns(qkv_TM, before + kv_head_ * shape_.value_dim(), shape_.value_dim(), first, count);
  }

 private:
  at::Tensor columns(const at::Tensor& rows_TM, int64_t left, int64_t width, int64_t first, int64_t count) const {
    return rows_TM.narrow(0, first_row_ + first, count).narrow(1, left, width);
  }

  const AttentionShape& shape_;
  int64_t first_row_, kv_head_;
};

// How sequences are divided. A function of the shape alone, so that results do not depend on the number of threads.
struct Division {
  explicit Division(const AttentionShape& shape)
      : documents(shape.documents),
        sequence(shape.sequence),
        window(std::min(shape.window.value_or(shape.sequence), shape.sequence)),
        group(shape.heads / shape.kv_heads),
        queries_of_block(std::clamp<int64_t>(rows_of_block / group, 32, 128)),
        scale(static_cast<float>(shape.score_scale())),
        sinks(shape.sinks) {}

  const Documents* documents;
  int64_t sequence, window, group, queries_of_block;
  float scale;
  bool sinks;

  // Of a sequence, in the order of its rows.
  std::vector<Block> blocks(int64_t sequence_index) const {
    std::vector<Block> blocks;
    const auto add = [&](int64_t document, int64_t rows) {
      for (int64_t first = 0; first < rows; first += queries_of_block)
        blocks.push_back({document, first, std::min(queries_of_block, rows - first)});
    };
    if (documents == nullptr) {
      add(0, sequence);
      return blocks;
    }
    const int64_t end = documents->first_of(sequence_index + 1);
    for (int64_t document = documents->first_of(sequence_index); document < end; ++document)
      add(documents->begin(document) - sequence_index * sequence,
          documents->end(document) - documents->begin(document));
    return blocks;
  }
  // Keys of its document that some query of the block sees are [first_key, end_key).
  int64_t first_key(const Block& block) const { return std::max<int64_t>(0, block.first_query - window + 1); }
  int64_t end_key(const Block& block) const { return block.first_query + block.queries; }

  // f(scores of these queries with so many keys) for one block of keys after the other.
  template <class F>
  void for_key_blocks(const Block& block, const F& f) const {
    for (int64_t key = first_key(block); key < end_key(block); key += keys_of_block)
      f(cpu::ScoreBlock{.rows = group * block.queries,
                        .queries = block.queries,
                        .first_query = block.first_query,
                        .first_key = key,
                        .keys = std::min(keys_of_block, end_key(block) - key),
                        .window = window,
                        .scale = scale,
                        .sinks = sinks});
  }
};

at::Tensor matrix(const at::Tensor& buffer, int64_t rows, int64_t columns) {
  return buffer.narrow(0, 0, rows * columns).view({rows, columns});
}

// The queries of a block as one matrix [heads x queries, dim].
at::Tensor stacked(const HeadGroup& group, const at::Tensor& rows_TM, int64_t dim, int64_t first, int64_t count) {
  const at::Tensor queries = group.queries(rows_TM, dim, first, count);
  at::Tensor out = at::empty(queries.sizes(), queries.options());
  out.copy_(queries);
  return out.view({-1, queries.size(2)});
}

// What was written in `dtype` over scores (attention_rows.h).
at::Tensor written_over(const at::Tensor& score, at::ScalarType dtype) {
  return dtype == at::kFloat ? score : score.view(dtype).narrow(1, 0, score.size(1));
}

// fp32 out, on the calling thread. Libraries do not multiply bf16 into fp32.
void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  if (cpu::multiplies_in_blocks(a.scalar_type()))
    cpu::blocked_product(out, a, b, accumulate);
  else
    product(out, a.to(at::kFloat), b.to(at::kFloat), accumulate);
}

void forward_block(const at::Tensor& out_TN, const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM,
                   const AttentionShape& shape, const Division& division, int64_t sequence, int64_t kv_head,
                   const Block& block) {
  const HeadGroup group(shape, sequence * shape.sequence + block.document, kv_head);
  const int64_t first = block.first_query, count = block.queries, rows = group.heads() * count;
  const at::Tensor query = stacked(group, qkv_TM, shape.head_dim, first, count);
  const at::ScalarType dtype = query.scalar_type();
  const int64_t value_dim = shape.value_dim();
  const at::Tensor scores = at::empty({rows * std::min(keys_of_block, division.end_key(block))}, at::kFloat);
  at::Tensor out = at::zeros({rows, value_dim}, at::kFloat);
  const at::Tensor most = at::full({rows}, -std::numeric_limits<float>::infinity(), at::kFloat);
  const at::Tensor sum = at::zeros({rows}, at::kFloat);
  division.for_key_blocks(block, [&](const cpu::ScoreBlock& b) {
    at::Tensor score = matrix(scores, rows, b.keys);
    multiply(score, query, group.keys(qkv_TM, b.first_key, b.keys).t(), /*accumulate=*/false);
    cpu::exponentials_(score.data_ptr<float>(), dtype, b, most.data_ptr<float>(), sum.data_ptr<float>(),
                       out.data_ptr<float>(), value_dim);
    multiply(out, written_over(score, dtype), group.values(qkv_TM, b.first_key, b.keys), /*accumulate=*/true);
  });
  const at::Tensor logsumexp = at::empty({rows}, at::kFloat);
  cpu::divide_(out.data_ptr<float>(), sum.data_ptr<float>(), most.data_ptr<float>(), logsumexp.data_ptr<float>(), rows,
               value_dim);
  group.queries(out_TN, value_dim, first, count).copy_(out.view({group.heads(), count, value_dim}));
  logsumexp_BNS[sequence]
      .narrow(0, group.first_head(), group.heads())
      .narrow(1, block.first_row(), count)
      .copy_(logsumexp.view({group.heads(), count}));
}

// Consecutive blocks of queries whose gradients of keys and values are added up by one thread.
using BlockRange = std::span<const Block>;

// At least 256 queries each, and 16 sums at most: each takes room.
std::vector<BlockRange> ranges_of(const std::vector<Block>& all, const Division& division, int64_t kv_heads) {
  const int64_t most = std::max<int64_t>(1, 16 / kv_heads), blocks = static_cast<int64_t>(all.size());
  const int64_t ranges = std::clamp<int64_t>(division.sequence / 256, 1, most);
  std::vector<BlockRange> result;
  for (int64_t i = 0; i < ranges; ++i)
    result.emplace_back(all.begin() + blocks * i / ranges, all.begin() + blocks * (i + 1) / ranges);
  return result;
}

struct BackwardInput {
  const at::Tensor &grad_out_TN, &out_TN, &logsumexp_BNS, &qkv_TM;
};

// Writes the gradients of the range's queries into grad_qkv, and adds those of keys and values to grad_key and
// grad_value [D or V, S]: so the larger matrix of their products is not the transposed one, a quarter faster.
void backward_range(const at::Tensor& grad_qkv_TM, const at::Tensor& grad_key_DS, const at::Tensor& grad_value_DS,
                    const BackwardInput& in, const AttentionShape& shape, const Division& division, int64_t sequence,
                    int64_t kv_head, BlockRange range) {
  const int64_t most_rows = division.group * std::min(division.queries_of_block, division.sequence);
  const int64_t room = most_rows * std::min(keys_of_block, division.sequence);
  const at::Tensor scores = at::empty({room}, at::kFloat), grads = at::empty({room}, at::kFloat);
  const at::Tensor delta = at::empty({most_rows}, at::kFloat);
  for (const Block& block : range) {
    const HeadGroup group(shape, sequence * shape.sequence + block.document, kv_head);
    const int64_t first = block.first_query, count = block.queries, rows = group.heads() * count;
    const at::Tensor query = stacked(group, in.qkv_TM, shape.head_dim, first, count);
    const at::ScalarType dtype = query.scalar_type();
    const at::Tensor grad_out = stacked(group, in.grad_out_TN, shape.value_dim(), first, count);
    const at::Tensor logsumexp = in.logsumexp_BNS[sequence]
                                     .narrow(0, group.first_head(), group.heads())
                                     .narrow(1, block.first_row(), count)
                                     .contiguous();
    cpu::dot_rows(delta.data_ptr<float>(), grad_out, stacked(group, in.out_TN, shape.value_dim(), first, count));
    const at::Tensor grad_query = at::zeros(query.sizes(), at::kFloat);
    division.for_key_blocks(block, [&](const cpu::ScoreBlock& b) {
      at::Tensor score = matrix(scores, rows, b.keys), grad = matrix(grads, rows, b.keys);
      const at::Tensor key = group.keys(in.qkv_TM, b.first_key, b.keys);
      multiply(score, query, key.t(), /*accumulate=*/false);
      multiply(grad, grad_out, group.values(in.qkv_TM, b.first_key, b.keys).t(), /*accumulate=*/false);
      cpu::probabilities_and_gradients_(score.data_ptr<float>(), grad.data_ptr<float>(), dtype, b,
                                        logsumexp.data_ptr<float>(), delta.data_ptr<float>());
      const at::Tensor probability = written_over(score, dtype), grad_score = written_over(grad, dtype);
      const int64_t first_key = block.document + b.first_key;
      multiply(grad_value_DS.narrow(1, first_key, b.keys), grad_out.t(), probability, /*accumulate=*/true);
      multiply(grad_key_DS.narrow(1, first_key, b.keys), query.t(), grad_score, /*accumulate=*/true);
      multiply(grad_query, grad_score, key, /*accumulate=*/true);
    });
    group.queries(grad_qkv_TM, shape.head_dim, first, count)
        .copy_(grad_query.view({group.heads(), count, shape.head_dim}));
  }
}

}  // namespace

void cpu::attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                            const AttentionShape& shape) {
  struct Task {
    int64_t sequence, kv_head;
    Block block;
  };
  const Division division(shape);
  std::vector<Task> tasks;
  for (int64_t sequence = 0; sequence < shape.batch; ++sequence) {
    const std::vector<Block> blocks = division.blocks(sequence);
    for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head)
      for (const Block& block : blocks) tasks.push_back({sequence, kv_head, block});
  }
  for_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const Task& task = tasks[static_cast<size_t>(i)];
    forward_block(out_TN, logsumexp_BNS, qkv_TM, shape, division, task.sequence, task.kv_head, task.block);
  });
}

void cpu::attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                             const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape) {
  const Division division(shape);
  const BackwardInput input{grad_out_TN, out_TN, logsumexp_BNS, qkv_TM};
  const int64_t keys = shape.head_dim, values = shape.value_dim();
  // One sequence after the other, so that sums take room for one: [key/value head, range, D of keys and V of values,
  // S].
  for (int64_t sequence = 0; sequence < shape.batch; ++sequence) {
    const std::vector<Block> blocks = division.blocks(sequence);
    const std::vector<BlockRange> ranges = ranges_of(blocks, division, shape.kv_heads);
    const auto parts = static_cast<int64_t>(ranges.size());
    const at::Tensor sums = at::empty({shape.kv_heads, parts, keys + values, shape.sequence}, at::kFloat);
    for_tasks(shape.kv_heads * parts, [&](int64_t task) {
      const int64_t kv_head = task / parts, part = task % parts;
      const at::Tensor own = sums[kv_head][part].zero_();
      backward_range(grad_qkv_TM, own.narrow(0, 0, keys), own.narrow(0, keys, values), input, shape, division, sequence,
                     kv_head, ranges[part]);
    });
    for_tasks(shape.kv_heads, [&](int64_t kv_head) {
      const HeadGroup group(shape, sequence * shape.sequence, kv_head);
      const at::Tensor sum = sums[kv_head][0];
      for (int64_t part = 1; part < parts; ++part) sum.add_(sums[kv_head][part]);
      group.keys(grad_qkv_TM, 0, shape.sequence).copy_(sum.narrow(0, 0, keys).t());
      group.values(grad_qkv_TM, 0, shape.sequence).copy_(sum.narrow(0, keys, values).t());
    });
  }
}

}  // namespace conclave

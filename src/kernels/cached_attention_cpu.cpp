// The CPU's form: as in training (attention_cpu.cpp), scores are computed and used block by block, and the query heads
// of one key/value head are one matrix with its keys. A block is some heads and some of the newest tokens, so that one
// token of one sequence still gives every thread something to do.
#include <ATen/ATen.h>

#include <limits>

#include "kernels/attention_rows.h"
#include "kernels/blocked_product.h"
#include "kernels/cached_attention.h"
#include "kernels/cpu.h"
#include "kernels/product.h"

namespace conclave {

namespace {

constexpr int64_t rows_of_block = 256, keys_of_block = 512, heads_of_block = 32;

// Some query heads of one key/value head with some of a sequence's newest tokens.
struct Block {
  const CachedKeys* sequence;
  int64_t kv_head;
  int64_t first_head, heads;
  int64_t first_row, queries;  // of the batch
  int64_t first_query;         // in the sequence

  int64_t rows() const { return heads * queries; }
  int64_t end_key() const { return first_query + queries; }
};

// A function of the shape alone, so that results do not depend on the number of threads.
std::vector<Block> blocks_of(std::span<const CachedKeys> sequences, const AttentionShape& shape) {
  const int64_t group = shape.heads / shape.kv_heads, heads = std::min(group, heads_of_block);
  const int64_t queries = std::clamp<int64_t>(rows_of_block / heads, 1, 128);
  std::vector<Block> blocks;
  int64_t row = 0;
  for (const CachedKeys& sequence : sequences) {
    const int64_t before = sequence.length() - sequence.queries;
    for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head)
      for (int64_t head = 0; head < group; head += heads)
        for (int64_t query = 0; query < sequence.queries; query += queries)
          blocks.push_back({&sequence, kv_head, kv_head * group + head, std::min(heads, group - head), row + query,
                            std::min(queries, sequence.queries - query), before + query});
    row += sequence.queries;
  }
  return blocks;
}

// fp32 out, on the calling thread.
void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  if (cpu::multiplies_in_blocks(a.scalar_type()))
    cpu::blocked_product(out, a, b, accumulate);
  else
    product(out, a.to(at::kFloat), b.to(at::kFloat), accumulate);
}

// [heads, queries, dim] of the block, of rows whose columns are heads of `dim`.
at::Tensor part_of(const at::Tensor& rows_TM, const Block& block, int64_t dim) {
  return rows_TM.narrow(0, block.first_row, block.queries)
      .narrow(1, block.first_head * dim, block.heads * dim)
      .unflatten(1, {block.heads, dim})
      .transpose(0, 1);
}

void attend(const at::Tensor& out_TN, const at::Tensor& logsumexp_BNS, const at::Tensor& query_TM, const Block& block,
            const AttentionShape& shape) {
  const int64_t rows = block.rows(), value_dim = shape.value_dim();
  const int64_t window = std::min(shape.window.value_or(block.end_key()), block.end_key());
  const int64_t first_key = std::max<int64_t>(0, block.first_query - window + 1);
  const at::Tensor query = part_of(query_TM, block, shape.head_dim).contiguous().view({rows, shape.head_dim});
  const at::ScalarType dtype = query.scalar_type();
  const at::Tensor scores = at::empty({rows * std::min(keys_of_block, block.end_key() - first_key)}, at::kFloat);
  const at::Tensor out = at::zeros({rows, value_dim}, at::kFloat), sum = at::zeros({rows}, at::kFloat);
  const at::Tensor most = at::full({rows}, -std::numeric_limits<float>::infinity(), at::kFloat);
  for (int64_t key = first_key; key < block.end_key(); key += keys_of_block) {
    const int64_t keys = std::min(keys_of_block, block.end_key() - key);
    const auto head_of = [&](const at::Tensor& rows_SM, int64_t dim) {
      return rows_SM.narrow(0, key, keys).narrow(1, block.kv_head * dim, dim);
    };
    const at::Tensor score = scores.narrow(0, 0, rows * keys).view({rows, keys});
    multiply(score, query, head_of(block.sequence->key_SM, shape.head_dim).t(), /*accumulate=*/false);
    const cpu::ScoreBlock of{.rows = rows,
                             .queries = block.queries,
                             .first_query = block.first_query,
                             .first_key = key,
                             .keys = keys,
                             .window = window,
                             .scale = static_cast<float>(shape.score_scale())};
    cpu::exponentials_(score.data_ptr<float>(), dtype, of, most.data_ptr<float>(), sum.data_ptr<float>(),
                       out.data_ptr<float>(), value_dim);
    const at::Tensor written = dtype == at::kFloat ? score : score.view(dtype).narrow(1, 0, keys);
    multiply(out, written, head_of(block.sequence->value_SM, value_dim), /*accumulate=*/true);
  }
  const at::Tensor logsumexp = at::empty({rows}, at::kFloat);
  cpu::divide_(out.data_ptr<float>(), sum.data_ptr<float>(), most.data_ptr<float>(), logsumexp.data_ptr<float>(), rows,
               value_dim);
  part_of(out_TN, block, value_dim).copy_(out.view({block.heads, block.queries, value_dim}));
  logsumexp_BNS[0]
      .narrow(0, block.first_head, block.heads)
      .narrow(1, block.first_row, block.queries)
      .copy_(logsumexp.view({block.heads, block.queries}));
}

}  // namespace

void cpu::cached_attention(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& query_TM,
                           std::span<const CachedKeys> sequences, const AttentionShape& shape) {
  const std::vector<Block> blocks = blocks_of(sequences, shape);
  for_tasks(static_cast<int64_t>(blocks.size()),
            [&](int64_t task) { attend(out_TN, logsumexp_BNS, query_TM, blocks[static_cast<size_t>(task)], shape); });
}

}  // namespace conclave

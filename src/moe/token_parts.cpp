#include "moe/token_parts.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "kernels/values.h"

namespace conclave {
namespace {

constexpr int64_t blocks = 64;

int64_t block_begin(int64_t tokens, int64_t block, int64_t count) {
  return tokens * block / count;
}

// [blocks, ranks]: rows that each block of this rank's tokens brings to each rank.
at::Tensor own_rows(const Choices& choices, int64_t local_experts, int64_t ranks) {
  at::Tensor rows = at::zeros({blocks, ranks}, at::kLong);
  if (choices.assumed) return rows;
  const at::Tensor choice_TK = choices.expert_TK.to(at::kCPU).contiguous();
  const auto* choice = choice_TK.const_data_ptr<int32_t>();
  const int64_t tokens = choices.tokens(), top_k = choices.top_k();
  auto* count = rows.data_ptr<int64_t>();
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t i = block_begin(tokens, block, blocks) * top_k; i < block_begin(tokens, block + 1, blocks) * top_k;
         ++i)
      if (choice[i] >= 0) ++count[block * ranks + choice[i] / local_experts];
  return rows;
}

// What all ranks' sum up to on paper; undefined elsewhere.
at::Tensor assumed_rows(const Choices& choices, int64_t local_experts, int64_t ranks) {
  if (!choices.assumed) return {};
  at::Tensor rows = at::empty({blocks, ranks}, at::kLong);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block_begin(choices.tokens(), block, blocks);
    const Choices part = choices.part({begin, block_begin(choices.tokens(), block + 1, blocks) - begin});
    for (int64_t rank = 0; rank < ranks; ++rank)
      rows[block][rank] = part.assumed_rows_to(rank * local_experts, local_experts).sum();
  }
  return rows;
}

}  // namespace

std::vector<TokenPart> equal_parts(int64_t tokens, int64_t parts) {
  std::vector<TokenPart> result;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = block_begin(tokens, part, parts);
    result.push_back({begin, block_begin(tokens, part + 1, parts) - begin});
  }
  return result;
}

std::vector<int64_t> detail::first_blocks_of_parts(const std::vector<std::vector<int64_t>>& rows_by_block,
                                                   double factor) {
  int64_t total = 0;
  for (const auto& rows : rows_by_block) total += std::accumulate(rows.begin(), rows.end(), int64_t{0});
  const double most = factor * static_cast<double>(total) / static_cast<double>(rows_by_block[0].size());
  std::vector<int64_t> firsts;
  std::vector<int64_t> load;
  for (size_t block = 0; block < rows_by_block.size(); ++block) {
    std::vector<int64_t> with = rows_by_block[block];
    for (size_t rank = 0; rank < load.size(); ++rank) with[rank] += load[rank];
    if (firsts.empty() || static_cast<double>(*std::max_element(with.begin(), with.end())) > most) {
      firsts.push_back(static_cast<int64_t>(block));
      load = rows_by_block[block];
    } else {
      load = std::move(with);
    }
  }
  return firsts;
}

std::vector<TokenPart> parts_within(double factor, const Choices& choices, int64_t experts, Communicator& expert) {
  const int64_t tokens = choices.tokens(), ranks = expert.size();
  at::Tensor rows = own_rows(choices, experts / ranks, ranks).to(choices.expert_TK.device());
  expert.all_reduce(rows).wait();
  rows = to_host(rows, assumed_rows(choices, experts / ranks, ranks));
  std::vector<std::vector<int64_t>> rows_by_block;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t* of_block = rows.const_data_ptr<int64_t>() + block * ranks;
    rows_by_block.emplace_back(of_block, of_block + ranks);
  }
  const std::vector<int64_t> firsts = detail::first_blocks_of_parts(rows_by_block, factor);
  std::vector<TokenPart> parts;
  for (size_t part = 0; part < firsts.size(); ++part) {
    const int64_t begin = block_begin(tokens, firsts[part], blocks);
    const int64_t end = part + 1 < firsts.size() ? block_begin(tokens, firsts[part + 1], blocks) : tokens;
    parts.push_back({begin, end - begin});
  }
  return parts;
}

}  // namespace conclave

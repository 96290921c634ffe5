#include "moe/choices.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace conclave {
namespace {

// Of `rows` that lie evenly over `tokens`, those of a part.
int64_t share(int64_t rows, const TokenPart& part, int64_t tokens) {
  return tokens == 0 ? 0 : rows * (part.begin + part.count) / tokens - rows * part.begin / tokens;
}

at::Tensor to_tensor(const std::vector<int64_t>& values) {
  return at::tensor(at::IntArrayRef(values), at::kLong);
}

}  // namespace

Choices Choices::part(const TokenPart& part) const {
  Choices of_part{expert_TK.narrow(0, part.begin, part.count), assumed};
  if (!assumed || part.count == tokens()) return of_part;
  RowsBySource rows = *assumed;
  for (std::vector<int64_t>& of_source : rows)
    for (int64_t& count : of_source) count = share(count, part, tokens());
  of_part.assumed = std::make_shared<const RowsBySource>(std::move(rows));
  return of_part;
}

Choices Choices::evened(at::Tensor shuffled_TK) const {
  Choices evened{std::move(shuffled_TK), assumed};
  if (!assumed) return evened;
  RowsBySource rows = *assumed;
  const auto ranks = static_cast<int64_t>(rows.size());
  for (size_t expert = 0; expert < rows[0].size(); ++expert) {
    int64_t sum = 0;
    for (const std::vector<int64_t>& of_source : rows) sum += of_source[expert];
    for (int64_t rank = 0; rank < ranks; ++rank) rows[rank][expert] = share(sum, {rank, 1}, ranks);
  }
  evened.assumed = std::make_shared<const RowsBySource>(std::move(rows));
  return evened;
}

at::Tensor Choices::assumed_rows_of(int source) const {
  return assumed ? to_tensor(assumed->at(static_cast<size_t>(source))) : at::Tensor();
}

at::Tensor Choices::assumed_rows_to(int64_t first, int64_t count) const {
  if (!assumed) return {};
  std::vector<int64_t> rows(static_cast<size_t>(count));
  for (const std::vector<int64_t>& of_source : *assumed)
    for (int64_t i = 0; i < count; ++i) rows[i] += of_source[first + i];
  return to_tensor(rows);
}

at::Tensor Choices::assumed_rows_by_source(int64_t first, int64_t count) const {
  if (!assumed) return {};
  std::vector<int64_t> rows;
  for (const std::vector<int64_t>& of_source : *assumed)
    rows.insert(rows.end(), of_source.begin() + first, of_source.begin() + first + count);
  return to_tensor(rows);
}

}  // namespace conclave

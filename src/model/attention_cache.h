// What attention keeps of a sequence that grows token by token, and the tokens that several of them grow by at once.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

#include "kernels/cached_attention.h"

namespace conclave {

// Of one layer: a row for each token so far, its keys in front and its values behind, or what latent attention makes
// both of.
class AttentionCache {
 public:
  void append(const at::Tensor& row_TM);
  int64_t length() const { return length_; }
  // Keeps the first rows alone; no more than there are.
  void shorten(int64_t length) { length_ = std::min(length_, length); }
  // [length, count]: columns of all rows.
  at::Tensor columns(int64_t first, int64_t count) const;

 private:
  at::Tensor room_SM_;  // of which the first rows are filled
  int64_t length_ = 0;
};

// Layer by layer.
using SequenceCache = std::vector<AttentionCache>;

// The newest tokens of some sequences, the rows of one behind those of another. Each has one at least.
struct NewestTokens {
  std::vector<int64_t> count_of_B;
  std::vector<SequenceCache*> cache_of_B;
  size_t layer = 0;  // that computes

  // Gives each sequence its rows.
  void append(const at::Tensor& row_TM) const;
  // What attention reads of all rows of each: `keys` columns from the first on, `values` from `first_value` on.
  std::vector<CachedKeys> keys_and_values(int64_t keys, int64_t first_value, int64_t values) const;
};

}  // namespace conclave

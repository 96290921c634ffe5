#include "model/attention_cache.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "kernels/values.h"
#include "memory/memory_category.h"

namespace conclave {

void AttentionCache::append(const at::Tensor& row_TM) {
  const int64_t needed = length_ + row_TM.size(0);
  if (!room_SM_.defined() || needed > room_SM_.size(0)) {
    constexpr int64_t least = 64;  // tokens; doubled from then on, so that each is copied about once
    MemoryScope scope(MemoryCategory::activations);
    const int64_t room = std::max({needed, 2 * length_, least});
    const at::Tensor larger = at::empty({room, row_TM.size(1)}, row_TM.options());
    if (length_ > 0) copy_values(larger.narrow(0, 0, length_), room_SM_.narrow(0, 0, length_));
    room_SM_ = larger;
  }
  copy_values(room_SM_.narrow(0, length_, row_TM.size(0)), row_TM);
  length_ = needed;
}

at::Tensor AttentionCache::columns(int64_t first, int64_t count) const {
  return room_SM_.narrow(0, 0, length_).narrow(1, first, count);
}

void NewestTokens::append(const at::Tensor& row_TM) const {
  int64_t row = 0;
  for (size_t b = 0; b < cache_of_B.size(); ++b) {
    cache_of_B[b]->at(layer).append(row_TM.narrow(0, row, count_of_B[b]));
    row += count_of_B[b];
  }
}

std::vector<CachedKeys> NewestTokens::keys_and_values(int64_t keys, int64_t first_value, int64_t values) const {
  std::vector<CachedKeys> sequences;
  for (size_t b = 0; b < cache_of_B.size(); ++b) {
    const AttentionCache& cache = cache_of_B[b]->at(layer);
    sequences.push_back({cache.columns(0, keys), cache.columns(first_value, values), count_of_B[b]});
  }
  return sequences;
}

}  // namespace conclave

#include "kernels/documents.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace conclave {
namespace {

at::Tensor on_device(const std::vector<int32_t>& values, at::Device device) {
  return at::from_blob(const_cast<int32_t*>(values.data()), {static_cast<int64_t>(values.size())}, at::kInt)
      .to(device, at::kInt, /*non_blocking=*/true, /*copy=*/true);
}

}  // namespace

int64_t Documents::first_of(int64_t sequence_index) const {
  return std::upper_bound(ends.begin(), ends.end(), sequence_index * sequence) - ends.begin();
}

Documents documents_of(std::vector<int64_t> ends, int64_t sequence, at::Device device) {
  Documents documents;
  documents.sequence = sequence;
  std::vector<int32_t> bounds = {0}, position;
  int64_t begin = 0;
  for (const int64_t end : ends) {
    check_invariant(end > begin && end <= (begin / sequence + 1) * sequence, "rows {} to {}: sequences have {}", begin,
                    end, sequence);
    for (int64_t row = begin; row < end; ++row) position.push_back(static_cast<int32_t>(row - begin));
    bounds.push_back(static_cast<int32_t>(end));
    documents.longest = std::max(documents.longest, end - begin);
    begin = end;
  }
  check_invariant(begin % sequence == 0, "documents end with row {}, within a sequence of {}", begin, sequence);
  documents.ends = std::move(ends);
  documents.bounds = on_device(bounds, device);
  documents.position_T = on_device(position, device);
  return documents;
}

}  // namespace conclave

#include "checkpoint/disk_parts.h"

#include <algorithm>

#include "base/error.h"
#include "checkpoint/safetensors_header.h"

namespace conclave {

DiskParts::DiskParts(const DiskNames& names, std::span<const DiskTensor> parts) : parts_(parts) {
  int64_t end = 0;
  for (const DiskTensor& part : parts) {
    begins_.push_back(end);
    end += checked_numel(part.shape).value();
  }
  begins_.push_back(end);
  check_invariant(end == checked_numel(names.shape), "the disk tensors of {} have {} elements, its shape is {}",
                  names.parameter, end, text_of(names.shape));
}

std::vector<DiskParts::Overlap> DiskParts::overlaps(int64_t begin, int64_t count) const {
  check_invariant(begin >= 0 && count >= 0 && begin <= begins_.back() - count,
                  "elements [{}, {}) lie in a parameter of {}", begin, begin + count, begins_.back());
  std::vector<Overlap> found;
  const int64_t end = begin + count;
  // The last part that begins at or before `begin`.
  auto i = static_cast<size_t>(std::upper_bound(begins_.begin(), begins_.end() - 1, begin) - begins_.begin());
  for (i = i > 0 ? i - 1 : 0; i < parts_.size() && begins_[i] < end; ++i) {
    const int64_t from = std::max(begin, begins_[i]);
    const int64_t to = std::min(end, begins_[i + 1]);
    if (from < to) found.push_back({&parts_[i], from - begins_[i], from - begin, to - from});
  }
  return found;
}

}  // namespace conclave

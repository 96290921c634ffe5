// Where a range of a parameter lies in the disk tensors that make it up, one after the other.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "checkpoint/tensor_slice.h"

namespace conclave {

class DiskParts {
 public:
  // InvariantError unless the parts together have as many elements as `names.shape`. The span must outlive this.
  DiskParts(const DiskNames& names, std::span<const DiskTensor> parts);

  struct Overlap {
    const DiskTensor* part;
    int64_t begin_in_part;   // elements
    int64_t begin_in_range;  // elements after the range's own begin
    int64_t count;
  };
  // The overlaps, in order, of elements [begin, begin + count) of the parameter with its parts; none is empty.
  std::vector<Overlap> overlaps(int64_t begin, int64_t count) const;

 private:
  std::span<const DiskTensor> parts_;
  std::vector<int64_t> begins_;  // of each part in the parameter, then the end of the last
};

}  // namespace conclave

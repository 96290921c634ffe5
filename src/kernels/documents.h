// Documents that lie one behind the other in the sequences of a batch and do not see each other: attention and
// positions begin anew with each. A document that a sequence's end cuts goes on in the next sequence as another one.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace conclave {

struct Documents {
  std::vector<int64_t> ends;  // the row behind each document, rising; the last one is the number of all rows
  int64_t sequence = 0;       // rows of a sequence, at whose end a document ends
  int64_t longest = 0;        // rows
  at::Tensor bounds;          // int32 [documents + 1], on the device: 0 and the ends
  at::Tensor position_T;      // int32 [T], on the device: a row's place in its document

  int64_t count() const { return static_cast<int64_t>(ends.size()); }
  // The documents of a sequence are [first_of, first_of of the next one).
  int64_t first_of(int64_t sequence_index) const;
  int64_t begin(int64_t document) const { return document == 0 ? 0 : ends[static_cast<size_t>(document - 1)]; }
  int64_t end(int64_t document) const { return ends[static_cast<size_t>(document)]; }
};

// `ends` as above, of whole sequences, one of which ends at each multiple of `sequence`.
Documents documents_of(std::vector<int64_t> ends, int64_t sequence, at::Device device);

}  // namespace conclave

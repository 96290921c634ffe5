#include "data/sample_stream.h"

#include <utility>

#include "base/error.h"
#include "data/permutation.h"

namespace conclave {

SampleStream::SampleStream(std::shared_ptr<const IndexedTokens> set, int64_t sequence_length, uint64_t seed,
                           Order order)
    : set_(std::move(set)), sequence_length_(sequence_length), seed_(seed), order_(order) {
  check_invariant(sequence_length_ >= 1, "sequence length {}", sequence_length_);
  samples_per_epoch_ = (set_->tokens() - 1) / sequence_length_;
  if (samples_per_epoch_ == 0)
    user_error(
        "{} has {} tokens, too few for one sample of data.sequence_length {}, which takes {} tokens ({} inputs and the "
        "target of the last "
        "one).\n       Use a sequence_length of at most {}, or a larger data set.",
        set_->prefix().string(), set_->tokens(), sequence_length_, sequence_length_ + 1, sequence_length_,
        set_->tokens() - 1);
}

void SampleStream::read(int64_t global_sample_index, std::span<int64_t> out) const {
  check_invariant(global_sample_index >= 0 && static_cast<int64_t>(out.size()) == sequence_length_ + 1,
                  "sample {} into {} places, sequence length {}", global_sample_index, out.size(), sequence_length_);
  const int64_t epoch = global_sample_index / samples_per_epoch_;
  int64_t sample = global_sample_index % samples_per_epoch_;
  if (order_ == Order::shuffled)
    sample = static_cast<int64_t>(permuted(static_cast<uint64_t>(sample), static_cast<uint64_t>(samples_per_epoch_),
                                           seed_, static_cast<uint64_t>(epoch)));
  set_->read(sample * sequence_length_, out);
}

}  // namespace conclave

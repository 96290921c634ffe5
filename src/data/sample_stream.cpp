#include "data/sample_stream.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "data/permutation.h"

namespace conclave {

SampleStream::SampleStream(std::shared_ptr<const IndexedTokens> set, int64_t sequence_length, uint64_t seed,
                           Order order, Packing packing)
    : set_(std::move(set)), sequence_length_(sequence_length), seed_(seed), order_(order), packing_(packing) {
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

int64_t SampleStream::first_token(int64_t global_sample_index) const {
  check_invariant(global_sample_index >= 0, "sample {}", global_sample_index);
  const int64_t epoch = global_sample_index / samples_per_epoch_;
  int64_t sample = global_sample_index % samples_per_epoch_;
  if (order_ == Order::shuffled)
    sample = static_cast<int64_t>(permuted(static_cast<uint64_t>(sample), static_cast<uint64_t>(samples_per_epoch_),
                                           seed_, static_cast<uint64_t>(epoch)));
  return sample * sequence_length_;
}

void SampleStream::read(int64_t global_sample_index, std::span<int64_t> out) const {
  check_invariant(static_cast<int64_t>(out.size()) == sequence_length_ + 1,
                  "sample {} into {} places, sequence length {}", global_sample_index, out.size(), sequence_length_);
  set_->read(first_token(global_sample_index), out);
}

void SampleStream::read_trained(int64_t global_sample_index, std::span<uint8_t> out) const {
  check_invariant(static_cast<int64_t>(out.size()) == sequence_length_, "mask of sample {} into {} places, not {}",
                  global_sample_index, out.size(), sequence_length_);
  if (has_mask())
    set_->mask()->read(first_token(global_sample_index) + 1, out);
  else
    std::fill(out.begin(), out.end(), uint8_t{1});
  const int64_t first_target = first_token(global_sample_index) + 1;
  for (const int64_t token : targets_that_begin(global_sample_index))
    out[static_cast<size_t>(token - first_target)] = 0;
}

int64_t SampleStream::targets(int64_t global_sample_index) const {
  const std::vector<int64_t> left_out = targets_that_begin(global_sample_index);
  if (!has_mask()) return sequence_length_ - static_cast<int64_t>(left_out.size());
  int64_t targets = set_->mask()->count(first_token(global_sample_index) + 1, sequence_length_);
  for (const int64_t token : left_out) targets -= set_->mask()->count(token, 1);
  return targets;
}

std::vector<int64_t> SampleStream::targets_that_begin(int64_t global_sample_index) const {
  if (packing_ == Packing::joined) return {};
  return set_->document_begins(first_token(global_sample_index) + 1, sequence_length_);
}

std::vector<int64_t> SampleStream::document_ends(int64_t global_sample_index) const {
  std::vector<int64_t> ends;
  if (packing_ == Packing::apart) {
    const int64_t first = first_token(global_sample_index);
    for (const int64_t begin : set_->document_begins(first + 1, sequence_length_ - 1)) ends.push_back(begin - first);
  }
  ends.push_back(sequence_length_);
  return ends;
}

}  // namespace conclave

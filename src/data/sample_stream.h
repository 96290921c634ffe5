// The endless stream of samples of a data set. Sample i of an epoch is tokens [i*S, i*S + S] of the set: S inputs, and
// the S targets shifted by one. Documents are packed: a sample may begin or end within one. Invariant: what a global
// sample index reads depends on nothing but the data, S, the seed, the order and the packing, so that one integer says
// where a run stands.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "data/indexed_tokens.h"

namespace conclave {

enum class Order {
  shuffled,  // each epoch visits all samples in an order of its own
  in_order,  // as they lie in the set, each epoch alike: for validation
};

// What the documents of a sample have to do with each other.
enum class Packing {
  joined,  // they are one text
  apart,   // they do not see each other: the first token of a document is no target
};

class SampleStream {
 public:
  // UserError, naming the set and the remedy, if it has fewer than sequence_length + 1 tokens.
  SampleStream(std::shared_ptr<const IndexedTokens> set, int64_t sequence_length, uint64_t seed, Order order,
               Packing packing = Packing::joined);

  // (tokens - 1) / S; the tokens behind the last full sample are never seen. At least 1.
  int64_t samples_per_epoch() const { return samples_per_epoch_; }
  int64_t sequence_length() const { return sequence_length_; }
  const IndexedTokens& set() const { return *set_; }

  // Sample `global_sample_index` (>= 0; it runs on through the epochs) into `out`, S + 1 tokens: the inputs are the
  // first S, the targets the last S. UserError for a token id outside the set's vocabulary, as IndexedTokens::read.
  void read(int64_t global_sample_index, std::span<int64_t> out) const;

  // Of the S targets of a sample, whether each is trained on (1) or not (0).
  void read_trained(int64_t global_sample_index, std::span<uint8_t> out) const;
  // How many of them are.
  int64_t targets(int64_t global_sample_index) const;
  bool has_mask() const { return set_->mask() != nullptr; }
  bool trains_on_all_targets() const { return !has_mask() && packing_ == Packing::joined; }

  Packing packing() const { return packing_; }
  // The places behind the documents of a sample's inputs, or behind its parts of them: rising, the last one S.
  std::vector<int64_t> document_ends(int64_t global_sample_index) const;

 private:
  int64_t first_token(int64_t global_sample_index) const;
  // Of the sample's targets those that are the first token of a document, by their tokens in the set.
  std::vector<int64_t> targets_that_begin(int64_t global_sample_index) const;

  std::shared_ptr<const IndexedTokens> set_;
  int64_t sequence_length_;
  uint64_t seed_;
  Order order_;
  Packing packing_;
  int64_t samples_per_epoch_ = 0;
};

}  // namespace conclave

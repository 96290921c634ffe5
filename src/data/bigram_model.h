// What counting pairs of neighbouring tokens alone can predict: the yardstick a trained model must beat on the same
// validation text.
//
// Interpolated modified Kneser-Ney smoothing, the strongest n-gram smoothing of Chen and Goodman, "An Empirical Study
// of Smoothing Techniques for Language Modeling" (1999), with their closed-form discounts D1, D2, D3+ from the numbers
// of pairs seen once to four times:
//     P(w | v) = (c(v w) - D(c(v w))) / c(v) + (sum of the discounts taken from v) / c(v) * P_lower(w)
//     P_lower(w): the same over single tokens, with the uniform distribution below it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/indexed_tokens.h"

namespace conclave {

// How often a token follows another one.
struct PairCount {
  uint64_t pair;  // previous token << 32 | next token
  int64_t count;
};

// Pairs (token t, token t + 1) of the stream for t in [begin, end), sorted by pair. Token ids must be below 2^32 (and
// are checked against the set's vocabulary). Memory: 16 bytes for each different pair and 128 MB of work space.
std::vector<PairCount> count_pairs(const IndexedTokens& set, int64_t begin, int64_t end);

// What the lower-order distribution of a BigramModel counts for a token.
enum class LowerOrder {
  frequency,     // its occurrences
  continuation,  // the different tokens it follows (Kneser and Ney, 1995)
};

// Probabilities of a token given the one before it. Invariant: for every history they are positive and sum to 1 over
// the vocabulary.
class BigramModel {
 public:
  // `pairs`: sorted, of token ids below vocab_size; may be empty.
  BigramModel(std::vector<PairCount> pairs, int64_t vocab_size, LowerOrder lower_order);

  double probability(int64_t token) const { return unigram_[static_cast<size_t>(token)]; }
  double probability(int64_t token, int64_t previous) const;

  // Mean of -ln P(next | previous) over pairs, and of -ln P(next), in nats.
  double bigram_cross_entropy(const std::vector<PairCount>& pairs) const;
  double unigram_cross_entropy(const std::vector<PairCount>& pairs) const;

 private:
  struct Discounts {
    double of_count[4] = {};  // [c] for a count c of 1, 2, or 3 and more
    double operator()(int64_t count) const { return of_count[count < 3 ? count : 3]; }
  };
  static Discounts discounts_of(const std::vector<int64_t>& counts_of_counts);
  static std::vector<double> smoothed(const std::vector<int64_t>& counts);

  std::vector<PairCount> pairs_;
  std::vector<size_t>
      first_pair_;  // [vocab_size + 1]: the pairs with previous token v are [first_pair_[v], first_pair_[v + 1])
  std::vector<int64_t> history_;      // [vocab_size]: c(v)
  std::vector<double> lower_weight_;  // [vocab_size]: sum of the discounts taken from v / c(v); 1 where c(v) = 0
  std::vector<double> unigram_;       // [vocab_size]: from frequencies
  std::vector<double> lower_;         // [vocab_size]: P_lower
  Discounts discounts_;
};

struct NgramCrossEntropy {
  double unigram = 0;  // nats a target
  double bigram = 0;   // nats a target
  int64_t targets = 0;
  LowerOrder lower_order = LowerOrder::continuation;  // the better one on held-out training text
};

// Estimated on the whole of `train`, scored on exactly the targets that an evaluation scores: those of all full samples
// of `validation` in order, tokens 1 to samples * sequence_length, each given the token before it. The kind of lower
// order is the one that predicts the last tenth of `train` better from the rest. UserError: a token id outside [0,
// vocab_size), a validation set without a full sample.
NgramCrossEntropy ngram_cross_entropy(const IndexedTokens& train, const IndexedTokens& validation, int64_t vocab_size,
                                      int64_t sequence_length);

}  // namespace conclave

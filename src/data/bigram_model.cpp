#include "data/bigram_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"

namespace conclave {
namespace {

constexpr int64_t pairs_at_once = 1 << 24;  // sorted together: 128 MB
constexpr uint64_t low_half = 0xffffffff;

size_t previous_of(uint64_t pair) {
  return static_cast<size_t>(pair >> 32);
}
size_t next_of(uint64_t pair) {
  return static_cast<size_t>(pair & low_half);
}

std::vector<PairCount> run_lengths(const std::vector<uint64_t>& sorted) {
  std::vector<PairCount> counts;
  for (const uint64_t pair : sorted) {
    if (counts.empty() || counts.back().pair != pair) counts.push_back({pair, 0});
    ++counts.back().count;
  }
  return counts;
}

std::vector<PairCount> merged(const std::vector<PairCount>& a, const std::vector<PairCount>& b) {
  if (a.empty()) return b;
  std::vector<PairCount> sum;
  sum.reserve(a.size() + b.size());
  for (auto left = a.begin(), right = b.begin(); left != a.end() || right != b.end();) {
    if (right == b.end() || (left != a.end() && left->pair < right->pair)) {
      sum.push_back(*left++);
    } else if (left == a.end() || right->pair < left->pair) {
      sum.push_back(*right++);
    } else {
      sum.push_back({left->pair, left->count + right->count});
      ++left, ++right;
    }
  }
  return sum;
}

// counts_of_counts[r]: how many of `count`s are r, for r of 1 to 4.
void note_count(std::vector<int64_t>& counts_of_counts, int64_t count) {
  if (count >= 1 && count <= 4) ++counts_of_counts[static_cast<size_t>(count)];
}

}  // namespace

std::vector<PairCount> count_pairs(const IndexedTokens& set, int64_t begin, int64_t end) {
  std::vector<PairCount> counts;
  std::vector<int64_t> tokens;
  std::vector<uint64_t> pairs;
  constexpr int64_t tokens_at_once = 1 << 16;
  while (begin < end) {
    const int64_t stop = std::min(end, begin + pairs_at_once);
    pairs.clear();
    pairs.reserve(static_cast<size_t>(stop - begin));
    for (int64_t t = begin; t < stop; t += tokens_at_once) {
      tokens.resize(static_cast<size_t>(std::min(stop - t, tokens_at_once) + 1));
      set.read(t, tokens);
      for (size_t j = 0; j + 1 < tokens.size(); ++j) {
        const auto previous = static_cast<uint64_t>(tokens[j]), next = static_cast<uint64_t>(tokens[j + 1]);
        check_invariant(previous <= low_half && next <= low_half, "token ids {} and {} of a pair", previous, next);
        pairs.push_back(previous << 32 | next);
      }
    }
    std::sort(pairs.begin(), pairs.end());
    counts = merged(counts, run_lengths(pairs));
    begin = stop;
  }
  return counts;
}

BigramModel::Discounts BigramModel::discounts_of(const std::vector<int64_t>& counts_of_counts) {
  const auto n = [&](int count) { return static_cast<double>(counts_of_counts[static_cast<size_t>(count)]); };
  const double plain = n(1) > 0 ? n(1) / (n(1) + 2 * n(2)) : 0.5;  // also Ney, Essen and Kneser's single discount
  Discounts discounts;
  for (int count = 1; count <= 3; ++count) {
    // Where too little text (or too much: nothing seen once) leaves the formula undefined or useless, the single
    // discount stands in. Some discount must remain, or what was never seen would have no probability.
    double discount = plain;
    if (n(count) > 0 && n(count + 1) > 0) discount = count - (count + 1) * plain * n(count + 1) / n(count);
    if (!(discount > 0) || discount >= count) discount = plain;
    discounts.of_count[count] = std::clamp(discount, 0.01, count - 0.01);
  }
  return discounts;
}

std::vector<double> BigramModel::smoothed(const std::vector<int64_t>& counts) {
  std::vector<int64_t> counts_of_counts(5);
  int64_t total = 0;
  for (const int64_t count : counts) {
    note_count(counts_of_counts, count);
    total += count;
  }
  std::vector<double> probabilities(counts.size(), 1.0 / static_cast<double>(counts.size()));
  if (total == 0) return probabilities;
  const Discounts discounts = discounts_of(counts_of_counts);
  double taken = 0;
  for (const int64_t count : counts) taken += discounts(count);
  for (size_t w = 0; w < counts.size(); ++w) {
    const double kept = static_cast<double>(counts[w]) - discounts(counts[w]);
    probabilities[w] = (kept + taken * probabilities[w]) / static_cast<double>(total);
  }
  return probabilities;
}

BigramModel::BigramModel(std::vector<PairCount> pairs, int64_t vocab_size, LowerOrder lower_order)
    : pairs_(std::move(pairs)) {
  const auto vocabulary = static_cast<size_t>(vocab_size);
  std::vector<int64_t> occurrences(vocabulary), continuations(vocabulary), counts_of_counts(5);
  first_pair_.assign(vocabulary + 1, 0);
  history_.assign(vocabulary, 0);
  for (const auto& [pair, count] : pairs_) {
    check_invariant(previous_of(pair) < vocabulary && next_of(pair) < vocabulary, "pair ({}, {}), vocabulary {}",
                    previous_of(pair), next_of(pair), vocabulary);
    ++first_pair_[previous_of(pair) + 1];
    history_[previous_of(pair)] += count;
    occurrences[next_of(pair)] += count;
    ++continuations[next_of(pair)];
    note_count(counts_of_counts, count);
  }
  for (size_t v = 0; v < vocabulary; ++v) first_pair_[v + 1] += first_pair_[v];

  discounts_ = discounts_of(counts_of_counts);
  std::vector<double> taken(vocabulary);
  for (const auto& [pair, count] : pairs_) taken[previous_of(pair)] += discounts_(count);
  lower_weight_.assign(vocabulary, 1.0);
  for (size_t v = 0; v < vocabulary; ++v)
    if (history_[v] > 0) lower_weight_[v] = taken[v] / static_cast<double>(history_[v]);
  unigram_ = smoothed(occurrences);
  lower_ = lower_order == LowerOrder::frequency ? unigram_ : smoothed(continuations);
}

double BigramModel::probability(int64_t token, int64_t previous) const {
  const auto w = static_cast<size_t>(token), v = static_cast<size_t>(previous);
  double probability = lower_weight_[v] * lower_[w];
  const uint64_t pair = static_cast<uint64_t>(previous) << 32 | static_cast<uint64_t>(token);
  const auto end = pairs_.begin() + static_cast<std::ptrdiff_t>(first_pair_[v + 1]);
  const auto found = std::lower_bound(pairs_.begin() + static_cast<std::ptrdiff_t>(first_pair_[v]), end, pair,
                                      [](const PairCount& a, uint64_t b) { return a.pair < b; });
  if (found != end && found->pair == pair)
    probability += (static_cast<double>(found->count) - discounts_(found->count)) / static_cast<double>(history_[v]);
  return probability;
}

double BigramModel::bigram_cross_entropy(const std::vector<PairCount>& pairs) const {
  double sum = 0;
  int64_t total = 0;
  for (const auto& [pair, count] : pairs) {
    sum -= static_cast<double>(count) *
           std::log(probability(static_cast<int64_t>(next_of(pair)), static_cast<int64_t>(previous_of(pair))));
    total += count;
  }
  return sum / static_cast<double>(total);
}

double BigramModel::unigram_cross_entropy(const std::vector<PairCount>& pairs) const {
  double sum = 0;
  int64_t total = 0;
  for (const auto& [pair, count] : pairs) {
    sum -= static_cast<double>(count) * std::log(unigram_[next_of(pair)]);
    total += count;
  }
  return sum / static_cast<double>(total);
}

NgramCrossEntropy ngram_cross_entropy(const IndexedTokens& train, const IndexedTokens& validation, int64_t vocab_size,
                                      int64_t sequence_length) {
  check_invariant(sequence_length >= 1, "sequence length {}", sequence_length);
  train.check_vocabulary(vocab_size);
  validation.check_vocabulary(vocab_size);
  const int64_t targets = (validation.tokens() - 1) / sequence_length * sequence_length;
  if (targets == 0)
    user_error(
        "{} has {} tokens, too few for one sample of sequence length {}.\n       Use a sequence length of at most {}, "
        "or a larger set.",
        validation.prefix().string(), validation.tokens(), sequence_length, validation.tokens() - 1);
  const std::vector<PairCount> scored = count_pairs(validation, 0, targets);

  const int64_t all = train.tokens() - 1;
  const int64_t kept = all - all / 10;
  std::vector<PairCount> pairs = count_pairs(train, 0, kept);
  NgramCrossEntropy result;
  if (const std::vector<PairCount> held_out = count_pairs(train, kept, all); !held_out.empty()) {
    const double frequency = BigramModel(pairs, vocab_size, LowerOrder::frequency).bigram_cross_entropy(held_out);
    const double continuation = BigramModel(pairs, vocab_size, LowerOrder::continuation).bigram_cross_entropy(held_out);
    if (frequency < continuation) result.lower_order = LowerOrder::frequency;
    pairs = merged(pairs, held_out);
  }
  const BigramModel model(std::move(pairs), vocab_size, result.lower_order);
  result.unigram = model.unigram_cross_entropy(scored);
  result.bigram = model.bigram_cross_entropy(scored);
  result.targets = targets;
  return result;
}

}  // namespace conclave

#include "data/bigram_model.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <map>
#include <random>
#include <set>

#include "base/error.h"
#include "set_on_disk.h"

namespace conclave {
namespace {

std::vector<int64_t> random_text(size_t tokens, int64_t vocab_size, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<int64_t> text(tokens);
  // The product of two uniform draws: skewed, as words are.
  std::uniform_real_distribution<double> uniform;
  for (auto& token : text)
    token = static_cast<int64_t>(uniform(engine) * uniform(engine) * static_cast<double>(vocab_size));
  return text;
}

IndexedTokens written(const ScratchFolder& folder, const std::string& name, const std::vector<int64_t>& text) {
  return IndexedTokens(SetOnDisk::of({text}).write(folder / name));
}

// Oracle: the formulas of Chen and Goodman for interpolated modified Kneser-Ney, section 5.1, in maps and sums over the
// whole vocabulary.
struct PlainModel {
  std::map<std::pair<int64_t, int64_t>, double> pair;
  std::map<int64_t, double> history, next, continuation;
  int64_t vocab_size;

  PlainModel(const std::vector<int64_t>& text, int64_t vocab) : vocab_size(vocab) {
    for (size_t t = 0; t + 1 < text.size(); ++t) {
      if (pair[{text[t], text[t + 1]}]++ == 0) ++continuation[text[t + 1]];
      ++history[text[t]];
      ++next[text[t + 1]];
    }
  }
  template <class Counts>
  static std::array<double, 4> discounts(const Counts& counts) {
    double n[5] = {};
    for (const auto& [what, count] : counts)
      if (count <= 4) ++n[static_cast<int>(count)];
    const double y = n[1] / (n[1] + 2 * n[2]);
    return {0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]};
  }
  double lower(int64_t w, const std::map<int64_t, double>& counts) const {
    const auto d = discounts(counts);
    double total = 0, taken = 0;
    for (const auto& [what, count] : counts) total += count, taken += d[std::min(3, static_cast<int>(count))];
    const double count = counts.count(w) ? counts.at(w) : 0;
    return (count - d[std::min(3, static_cast<int>(count))]) / total + taken / total / static_cast<double>(vocab_size);
  }
  double bigram(int64_t v, int64_t w, const std::map<int64_t, double>& lower_counts) const {
    if (!history.count(v)) return lower(w, lower_counts);
    const auto d = discounts(pair);
    double taken = 0;
    for (const auto& [what, count] : pair)
      if (what.first == v) taken += d[std::min(3, static_cast<int>(count))];
    const double count = pair.count({v, w}) ? pair.at({v, w}) : 0;
    return (count - d[std::min(3, static_cast<int>(count))]) / history.at(v) +
           taken / history.at(v) * lower(w, lower_counts);
  }
};

// A text in which the numbers of pairs and of tokens seen 1, 2, 3 and 4 times are all positive, so that the plain
// formulas are defined. Tolerance: both are a handful of double operations, 1e-12 relative.
TEST(BigramModel, equals_the_published_formulas) {
  const ScratchFolder folder;
  const int64_t vocab_size = 60;
  const auto text = random_text(400, 50, 3);
  const auto set = written(folder, "set", text);
  const PlainModel plain(text, vocab_size);
  for (const auto& counts : {plain.next, plain.continuation})
    for (const double d : PlainModel::discounts(counts)) ASSERT_TRUE(d >= 0 && d < 3);
  for (const auto kind : {LowerOrder::frequency, LowerOrder::continuation}) {
    const BigramModel model(count_pairs(set, 0, set.tokens() - 1), vocab_size, kind);
    const auto& lower_counts = kind == LowerOrder::frequency ? plain.next : plain.continuation;
    for (int64_t v = 0; v < vocab_size; ++v) {
      EXPECT_NEAR(model.probability(v) / plain.lower(v, plain.next), 1, 1e-12);
      for (int64_t w = 0; w < vocab_size; ++w)
        EXPECT_NEAR(model.probability(w, v) / plain.bigram(v, w, lower_counts), 1, 1e-12) << v << " " << w;
    }
  }
}

// Texts too small or too regular for the closed-form discounts included. Tolerance: sums of 20 doubles.
TEST(BigramModel, probabilities_are_positive_and_sum_to_one) {
  const ScratchFolder folder;
  const int64_t vocab_size = 20;
  std::vector<std::vector<int64_t>> texts = {
      {0, 0}, {3, 4}, {1, 2, 1, 2, 1, 2, 1, 2}, random_text(50, 20, 1), random_text(20000, 20, 2)};
  std::vector<int64_t> each_once(20);
  for (int64_t j = 0; j < 20; ++j) each_once[static_cast<size_t>(j)] = j;
  texts.push_back(each_once);
  for (const auto& text : texts) {
    const auto set = written(folder, "set", text);
    for (const auto kind : {LowerOrder::frequency, LowerOrder::continuation}) {
      const BigramModel model(count_pairs(set, 0, set.tokens() - 1), vocab_size, kind);
      double unigram_sum = 0;
      for (int64_t v = 0; v < vocab_size; ++v) {
        unigram_sum += model.probability(v);
        double sum = 0;
        for (int64_t w = 0; w < vocab_size; ++w) {
          EXPECT_GT(model.probability(w, v), 0) << w << " after " << v;
          sum += model.probability(w, v);
        }
        EXPECT_NEAR(sum, 1, 1e-12);
      }
      EXPECT_NEAR(unigram_sum, 1, 1e-12);
    }
  }
}

// Oracle: a map over the text. 70,000 tokens are more than one block of the reader.
TEST(CountPairs, equals_a_plain_count) {
  const ScratchFolder folder;
  const auto text = random_text(70000, 300, 8);
  const auto set = written(folder, "set", text);
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 69999}, {5, 6}, {1234, 68000}, {7, 7}}) {
    std::map<uint64_t, int64_t> plain;
    for (int64_t t = begin; t < end; ++t)
      ++plain[static_cast<uint64_t>(text[t]) << 32 | static_cast<uint64_t>(text[t + 1])];
    const auto counts = count_pairs(set, begin, end);
    ASSERT_EQ(counts.size(), plain.size());
    auto expected = plain.begin();
    for (const auto& count : counts) {
      EXPECT_EQ(count.pair, expected->first);
      EXPECT_EQ(count.count, expected->second);
      ++expected;
    }
  }
}

// Oracle: text drawn from a known Markov chain, whose conditional entropy no predictor can beat, and which plenty of
// text lets a bigram model reach; its stationary entropy for the unigram. Tolerance: 0.01 nats; the entropies' standard
// errors over 60,000 targets are below 0.003, and the cost of estimating 8 x 8 numbers from 400,000 pairs is about 56 /
// 800,000 nats.
TEST(NgramCrossEntropy, reaches_the_entropy_of_a_markov_chain) {
  const ScratchFolder folder;
  constexpr int states = 8;
  std::mt19937 engine(17);
  std::uniform_real_distribution<double> uniform;
  std::vector<std::vector<double>> transition(states, std::vector<double>(states));
  for (auto& row : transition) {
    double sum = 0;
    for (auto& p : row) sum += p = std::pow(uniform(engine), 4) + 1e-3;
    for (auto& p : row) p /= sum;
  }
  std::vector<double> stationary(states, 1.0 / states);
  for (int step = 0; step < 1000; ++step) {
    std::vector<double> next(states);
    for (int v = 0; v < states; ++v)
      for (int w = 0; w < states; ++w) next[w] += stationary[v] * transition[v][w];
    stationary = next;
  }
  double unigram_entropy = 0, bigram_entropy = 0;
  for (int v = 0; v < states; ++v) {
    unigram_entropy -= stationary[v] * std::log(stationary[v]);
    for (int w = 0; w < states; ++w) bigram_entropy -= stationary[v] * transition[v][w] * std::log(transition[v][w]);
  }
  const auto draw = [&](size_t tokens) {
    std::vector<int64_t> text = {0};
    while (text.size() < tokens) {
      const auto& row = transition[static_cast<size_t>(text.back())];
      text.push_back(std::discrete_distribution<int64_t>(row.begin(), row.end())(engine));
    }
    return text;
  };
  const auto train = written(folder, "train", draw(400000));
  const auto validation = written(folder, "validation", draw(60001));
  const auto result = ngram_cross_entropy(train, validation, states, 100);
  EXPECT_EQ(result.targets, 60000);
  EXPECT_NEAR(result.bigram, bigram_entropy, 0.01);
  EXPECT_NEAR(result.unigram, unigram_entropy, 0.01);
  EXPECT_GT(unigram_entropy - bigram_entropy, 0.1);  // so that taking one for the other fails
}

// Oracle: the definition of what an evaluation scores, sample by sample, with the model of all training text.
TEST(NgramCrossEntropy, scores_the_targets_of_full_samples_only) {
  const ScratchFolder folder;
  const auto train_text = random_text(3000, 40, 5);
  auto validation_text = random_text(107, 40, 6);
  for (size_t t = 101; t < validation_text.size(); ++t)
    validation_text[t] = 39;  // behind the last full sample of 10: must not count
  const auto train = written(folder, "train", train_text);
  const auto validation = written(folder, "validation", validation_text);
  const auto result = ngram_cross_entropy(train, validation, 40, 10);
  const BigramModel model(count_pairs(train, 0, train.tokens() - 1), 40, result.lower_order);
  double bigram = 0, unigram = 0;
  for (int64_t sample = 0; sample < 10; ++sample) {
    for (int64_t j = 1; j <= 10; ++j) {
      const int64_t target = validation_text[static_cast<size_t>(sample * 10 + j)];
      bigram -= std::log(model.probability(target, validation_text[static_cast<size_t>(sample * 10 + j - 1)])) / 100;
      unigram -= std::log(model.probability(target)) / 100;
    }
  }
  EXPECT_EQ(result.targets, 100);
  EXPECT_NEAR(result.bigram, bigram, 1e-12);
  EXPECT_NEAR(result.unigram, unigram, 1e-12);
  EXPECT_THROW(ngram_cross_entropy(train, validation, 39, 10), UserError);
  EXPECT_THROW(ngram_cross_entropy(train, validation, 40, 107), UserError);
}

}  // namespace
}  // namespace conclave

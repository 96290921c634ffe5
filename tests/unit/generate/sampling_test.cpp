#include "generate/sampling.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "base/error.h"

namespace conclave {
namespace {

const at::Tensor logits() {
  return at::tensor({1.0F, -2.0F, 0.5F, 3.0F, 2.0F, -1.0F});
}

std::set<int64_t> kept(const Sampling& sampling, const std::vector<int64_t>& tokens = {}) {
  const at::Tensor filtered = filtered_logits(logits(), tokens, sampling);
  std::set<int64_t> result;
  for (int64_t v = 0; v < filtered.numel(); ++v)
    if (std::isfinite(filtered[v].item<float>())) result.insert(v);
  return result;
}

// By hand. (Transformers' own processors: tests/parity/test_generation.py.)
TEST(Sampling, filters_keep_what_they_say) {
  EXPECT_EQ(kept({.temperature = 1}).size(), 6);
  EXPECT_EQ(kept({.temperature = 1, .top_k = 2}), (std::set<int64_t>{3, 4}));
  EXPECT_EQ(kept({.temperature = 1, .top_k = 100}).size(), 6);
  // Probabilities: 3 has 0.615, 4 has 0.226, 0 has 0.083.
  EXPECT_EQ(kept({.temperature = 1, .top_p = 0.6}), (std::set<int64_t>{3}));
  EXPECT_EQ(kept({.temperature = 1, .top_p = 0.7}), (std::set<int64_t>{3, 4}));
  EXPECT_EQ(kept({.temperature = 1, .top_p = 0.9}), (std::set<int64_t>{0, 3, 4}));
  EXPECT_EQ(kept({.temperature = 1, .top_p = 0}), (std::set<int64_t>{3}));
  // After the other filters: of the two that are left, one has 0.73.
  EXPECT_EQ(kept({.temperature = 1, .top_k = 2, .top_p = 0.7}), (std::set<int64_t>{3}));
}

TEST(Sampling, repetition_makes_tokens_less_likely_once) {
  const at::Tensor filtered = filtered_logits(logits(), std::vector<int64_t>{3, 1, 3}, {.repetition_penalty = 2});
  EXPECT_EQ(filtered[3].item<float>(), 1.5F);
  EXPECT_EQ(filtered[1].item<float>(), -4.0F);
  EXPECT_EQ(filtered[0].item<float>(), 1.0F);
  EXPECT_EQ(choose_token(filtered, {}, 0.9), 4);
}

TEST(Sampling, frequencies_are_the_probabilities) {
  const Sampling sampling{.temperature = 1.3, .top_k = 5};
  const at::Tensor filtered = filtered_logits(logits(), {}, sampling), probability = at::softmax(filtered, 0);
  constexpr int64_t draws = 20000;
  std::vector<double> count(6);
  for (int64_t i = 0; i < draws; ++i)
    ++count[static_cast<size_t>(choose_token(filtered, sampling, draw_of(7, i / 100, i % 100)))];
  EXPECT_EQ(count[1], 0);
  for (int64_t v = 0; v < 6; ++v) {
    const double p = probability[v].item<double>();
    // Five standard deviations of a count.
    EXPECT_NEAR(count[static_cast<size_t>(v)], draws * p, 5 * std::sqrt(draws * p * (1 - p))) << v;
  }
}

TEST(Sampling, extreme_draws_choose_tokens_that_can_be_drawn) {
  const Sampling sampling{.temperature = 1, .top_k = 2};
  const at::Tensor filtered = filtered_logits(logits(), {}, sampling);
  EXPECT_EQ(choose_token(filtered, sampling, 0), 3);
  EXPECT_EQ(choose_token(filtered, sampling, std::nextafter(1.0, 0.0)), 4);
}

TEST(Sampling, draws_differ_by_seed_prompt_and_position) {
  EXPECT_EQ(draw_of(1, 2, 3), draw_of(1, 2, 3));
  const std::set<double> draws = {draw_of(1, 2, 3), draw_of(2, 2, 3), draw_of(1, 3, 3), draw_of(1, 2, 4)};
  EXPECT_EQ(draws.size(), 4);
  for (const double draw : draws) EXPECT_TRUE(draw >= 0 && draw < 1);
}

TEST(Sampling, logits_that_are_no_numbers_are_refused) {
  const at::Tensor damaged = at::tensor({1.0F, std::numeric_limits<float>::quiet_NaN()});
  EXPECT_THROW(choose_token(damaged, {}, 0), UserError);
}

}  // namespace
}  // namespace conclave

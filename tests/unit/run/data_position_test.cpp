// Oracle: the samples of a stream as they are read one by one (SampleStream), and counting.
#include "run/data_position.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "data/fingerprint.h"
#include "unit/data/set_on_disk.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr uint64_t seed = 5;

struct Set {
  explicit Set(int64_t count) {
    std::vector<int64_t> document(static_cast<size_t>(count));
    std::iota(document.begin(), document.end(), 0);
    tokens = std::make_shared<IndexedTokens>(SetOnDisk::of({document}).write(folder / "set"), 60000);
  }
  Blend blend(int64_t length) const {
    return Blend(std::make_shared<const SampleStream>(tokens, length, seed, Order::shuffled));
  }
  ScratchFolder folder;
  std::shared_ptr<const IndexedTokens> tokens;
};

CheckpointState stopped_at(const Set& set, int64_t samples, int64_t length) {
  CheckpointState state;
  state.samples = samples;
  state.seed = seed;
  state.data_fingerprint = fingerprint(*set.tokens);
  state.job = {{"data.sequence_length", std::to_string(length)}};
  return state;
}

TEST(DataPosition, of_the_same_samples_is_their_number) {
  const Set set(8 * 20 + 1);
  const DataPosition position = position_in_data(stopped_at(set, 57, 8), set.blend(8), fingerprint(*set.tokens), seed);
  EXPECT_EQ(position.sample, 57);
  EXPECT_EQ(position.said, "");
}

// At the end of an epoch nothing of it is left, whatever the length: the next one begins.
TEST(DataPosition, of_another_length_is_exact_between_epochs) {
  const Set set(8 * 20 + 1);
  for (const int64_t length : {4, 16, 5, 7}) {
    const Blend blend = set.blend(length);
    const DataPosition position = position_in_data(stopped_at(set, 3 * 20, 8), blend, fingerprint(*set.tokens), seed);
    EXPECT_EQ(position.sample, 3 * blend.stream(0).samples_per_epoch()) << length;
    EXPECT_EQ(position.said, "") << length;
  }
}

// Within an epoch as many tokens count as read; the order is another one, and that is said.
TEST(DataPosition, of_another_length_within_an_epoch_is_in_tokens) {
  const Set set(8 * 20 + 1);
  const auto within = [&](int64_t samples, int64_t length) {
    return position_in_data(stopped_at(set, samples, 8), set.blend(length), fingerprint(*set.tokens), seed);
  };
  EXPECT_EQ(within(20 + 5, 4).sample, 40 + 10);
  EXPECT_EQ(within(20 + 5, 16).sample, 10 + 3);  // 40 tokens are two samples and a half: the half counts as read
  EXPECT_EQ(within(20 + 19, 160).sample, 1 + 1);
  EXPECT_THAT(within(20 + 5, 4).said,
              AllOf(HasSubstr("data.sequence_length"), HasSubstr("epoch 2"), HasSubstr("25.0 %")));
}

TEST(DataPosition, of_another_seed_keeps_its_place_and_says_so) {
  const Set set(8 * 20 + 1);
  const DataPosition position =
      position_in_data(stopped_at(set, 30, 8), set.blend(8), fingerprint(*set.tokens), seed + 1);
  EXPECT_EQ(position.sample, 30);
  EXPECT_THAT(position.said, AllOf(HasSubstr("run.seed"), HasSubstr("epoch 2"), HasSubstr("50.0 %")));
}

TEST(DataPosition, of_other_data_is_its_beginning) {
  const Set set(8 * 20 + 1), other(8 * 30 + 1);
  const DataPosition position =
      position_in_data(stopped_at(set, 30, 8), other.blend(8), fingerprint(*other.tokens), seed);
  EXPECT_EQ(position.sample, 0);
  EXPECT_THAT(position.said, HasSubstr("from its beginning"));
}

// Of several sources, whose epochs end at different times, as many tokens count as read.
TEST(DataPosition, of_a_blend_is_in_tokens) {
  const Set set(8 * 20 + 1), other(8 * 30 + 1);
  const auto blend = [&](int64_t length) {
    return Blend({{"set", 3, std::make_shared<const SampleStream>(set.tokens, length, seed, Order::shuffled)},
                  {"other", 1, std::make_shared<const SampleStream>(other.tokens, length, seed, Order::shuffled)}});
  };
  CheckpointState state = stopped_at(set, 101, 8);
  state.data_fingerprint = fingerprint(blend(8));
  EXPECT_NE(state.data_fingerprint, fingerprint(*set.tokens));
  EXPECT_EQ(position_in_data(state, blend(8), state.data_fingerprint, seed).sample, 101);
  EXPECT_EQ(position_in_data(state, blend(8), state.data_fingerprint, seed).said, "");
  const DataPosition position = position_in_data(state, blend(16), state.data_fingerprint, seed);
  EXPECT_EQ(position.sample, 51);
  EXPECT_THAT(position.said, AllOf(HasSubstr("data.sequence_length"), HasSubstr("every source")));
}

TEST(DataPosition, of_an_imported_model_is_the_beginning) {
  const Set set(8 * 20 + 1);
  const DataPosition position = position_in_data(CheckpointState{}, set.blend(8), fingerprint(*set.tokens), seed);
  EXPECT_EQ(position.sample, 0);
  EXPECT_EQ(position.said, "");
}

}  // namespace
}  // namespace conclave

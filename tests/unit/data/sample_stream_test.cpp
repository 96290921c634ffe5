#include "data/sample_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "base/error.h"
#include "set_on_disk.h"

namespace conclave {
namespace {

// A set whose token t is t: a sample shows where it was read.
std::shared_ptr<const IndexedTokens> counting_set(const ScratchFolder& folder, int64_t tokens,
                                                  int64_t vocab_size = 60000) {
  std::vector<int64_t> first(static_cast<size_t>(tokens / 3)), second(static_cast<size_t>(tokens - tokens / 3));
  std::iota(first.begin(), first.end(), 0);
  std::iota(second.begin(), second.end(), tokens / 3);
  return std::make_shared<IndexedTokens>(SetOnDisk::of({first, second}).write(folder / "set"), vocab_size);
}

std::vector<int64_t> sample_of(const SampleStream& stream, int64_t index) {
  std::vector<int64_t> out(static_cast<size_t>(stream.sequence_length() + 1));
  stream.read(index, out);
  return out;
}

// Oracle: the definition, tokens [i*S, i*S + S], epochs alike.
TEST(SampleStream, in_order_is_the_definition_and_wraps) {
  const ScratchFolder folder;
  for (const int64_t tokens : {9, 10, 12, 13}) {  // S = 4: 2, 2, 2 and 3 samples
    const SampleStream stream(counting_set(folder, tokens), 4, 0, Order::in_order);
    EXPECT_EQ(stream.samples_per_epoch(), tokens == 13 ? 3 : 2);
    for (int64_t i = 0; i < 3 * stream.samples_per_epoch(); ++i) {
      const int64_t first = i % stream.samples_per_epoch() * 4;
      EXPECT_EQ(sample_of(stream, i), (std::vector<int64_t>{first, first + 1, first + 2, first + 3, first + 4}));
    }
  }
}

// Oracle: the set of the first tokens of an epoch's samples must be that of the samples in order.
TEST(SampleStream, a_shuffled_epoch_visits_every_sample_once) {
  const ScratchFolder folder;
  const SampleStream stream(counting_set(folder, 1000), 7, 42, Order::shuffled);
  const int64_t samples = stream.samples_per_epoch();
  ASSERT_EQ(samples, 142);
  std::vector<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::set<int64_t> places;
    orders.emplace_back();
    for (int64_t i = 0; i < samples; ++i) {
      const auto sample = sample_of(stream, epoch * samples + i);
      for (int64_t j = 1; j <= 7; ++j) EXPECT_EQ(sample[j], sample[0] + j);
      ASSERT_EQ(sample[0] % 7, 0);
      places.insert(sample[0] / 7);
      orders.back().push_back(sample[0]);
    }
    EXPECT_EQ(places.size(), static_cast<size_t>(samples));
    EXPECT_EQ(*places.rbegin(), samples - 1);
  }
  EXPECT_NE(orders[0], orders[1]);
  EXPECT_NE(orders[1], orders[2]);
  const SampleStream other(counting_set(folder, 1000), 7, 43, Order::shuffled);
  EXPECT_NE(sample_of(other, 0), sample_of(stream, 0));
}

TEST(SampleStream, a_set_too_small_for_a_sample_is_refused_with_the_remedy) {
  const ScratchFolder folder;
  const SampleStream just_enough(counting_set(folder, 9), 8, 0, Order::shuffled);
  EXPECT_EQ(just_enough.samples_per_epoch(), 1);
  EXPECT_EQ(sample_of(just_enough, 5).front(), 0);
  try {
    SampleStream stream(counting_set(folder, 8), 8, 0, Order::shuffled);
    FAIL() << "nothing was refused";
  } catch (const UserError& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("set has 8 tokens"),
                                             testing::HasSubstr("sequence_length 8"), testing::HasSubstr("at most 7")));
  }
}

TEST(SampleStream, a_bad_token_is_refused_by_the_sample_that_holds_it) {
  const ScratchFolder folder;
  const SampleStream stream(counting_set(folder, 30, 17), 4, 0, Order::in_order);
  EXPECT_EQ(sample_of(stream, 3).back(), 16);
  EXPECT_THROW(sample_of(stream, 4), UserError);
}

}  // namespace
}  // namespace conclave

// Documents that do not see each other. Oracle: a list of the documents' lengths, walked token by token.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "data/batch_loader.h"
#include "data/document_length.h"
#include "set_on_disk.h"

namespace conclave {
namespace {

// Token t is t. Empty documents lie between others, and at the end.
struct Set {
  explicit Set(std::vector<int64_t> lengths_of_documents, bool masked = false, uint64_t seed = 9)
      : lengths(std::move(lengths_of_documents)) {
    std::vector<std::vector<int64_t>> documents;
    for (const int64_t length : lengths) {
      documents.emplace_back(static_cast<size_t>(length));
      std::iota(documents.back().begin(), documents.back().end(), static_cast<int64_t>(document_of_token.size()));
      document_of_token.insert(document_of_token.end(), static_cast<size_t>(length),
                               static_cast<int64_t>(documents.size()));
    }
    mask.assign(document_of_token.size(), 1);
    SetOnDisk set = SetOnDisk::of(documents);
    std::mt19937_64 random(seed);
    if (masked)
      for (uint8_t& byte : mask) byte = random() % 2;
    tokens = std::make_shared<const IndexedTokens>(masked ? set.write_masked(folder / "set", mask)
                                                          : set.write(folder / "set"));
  }
  bool begins(size_t token) const { return token == 0 || document_of_token[token] != document_of_token[token - 1]; }

  ScratchFolder folder;
  std::vector<int64_t> lengths;
  std::vector<int64_t> document_of_token;
  std::vector<uint8_t> mask;
  std::shared_ptr<const IndexedTokens> tokens;
};

const std::vector<std::vector<int64_t>>& sets() {
  static const std::vector<std::vector<int64_t>> lengths = {
      {50}, {1, 0, 0, 2, 30, 0, 1, 1, 1, 17, 0}, {0, 0, 7, 7, 7, 7, 7, 0}, {14, 14, 14}, {3, 4, 7, 22, 1}};
  return lengths;
}

TEST(DocumentBegins, of_any_stretch_are_those_of_the_list) {
  for (const auto& lengths : sets()) {
    const Set set(lengths);
    const auto count = static_cast<int64_t>(set.document_of_token.size());
    for (int64_t first = 0; first < count; ++first)
      for (int64_t end = first; end <= count; ++end) {
        std::vector<int64_t> expected;
        for (int64_t token = first; token < end; ++token)
          if (set.begins(static_cast<size_t>(token))) expected.push_back(token);
        ASSERT_EQ(set.tokens->document_begins(first, end - first), expected) << first << " to " << end;
      }
  }
}

TEST(SampleStream, of_documents_apart_ends_them_and_lets_none_predict_the_next) {
  for (const auto& lengths : sets())
    for (const bool masked : {false, true})
      for (const int64_t length : {1, 5, 7}) {
        SCOPED_TRACE(testing::Message() << "seed 9, masked " << masked << ", sequences of " << length);
        const Set set(lengths, masked);
        const SampleStream stream(set.tokens, length, 5, Order::shuffled, Packing::apart);
        EXPECT_FALSE(stream.trains_on_all_targets());
        for (int64_t i = 0; i < 2 * stream.samples_per_epoch(); ++i) {
          std::vector<int64_t> sample(static_cast<size_t>(length + 1)), ends;
          stream.read(i, sample);
          std::vector<uint8_t> trained(static_cast<size_t>(length)), expected;
          stream.read_trained(i, trained);
          for (int64_t s = 0; s < length; ++s) {
            const auto target = static_cast<size_t>(sample[static_cast<size_t>(s + 1)]);
            if (s + 1 == length || set.begins(target)) ends.push_back(s + 1);
            expected.push_back(set.begins(target) ? 0 : set.mask[target]);
          }
          EXPECT_EQ(stream.document_ends(i), ends);
          EXPECT_EQ(trained, expected);
          EXPECT_EQ(stream.targets(i), std::count(expected.begin(), expected.end(), 1));
        }
      }
}

TEST(SampleStream, of_joined_documents_knows_none) {
  const Set set({3, 4, 7, 22, 1});
  const SampleStream stream(set.tokens, 7, 5, Order::in_order);
  EXPECT_EQ(stream.document_ends(1), std::vector<int64_t>{7});
  EXPECT_EQ(stream.targets(0), 7);
  EXPECT_TRUE(stream.trains_on_all_targets());
}

// Rows of a batch are documents of its own; a source that runs out, and samples that do not exist, add none.
TEST(BatchLoader, says_where_documents_end) {
  const Set set({3, 4, 7, 22, 1, 9});
  constexpr int64_t length = 5;
  const auto stream = std::make_shared<const SampleStream>(set.tokens, length, 5, Order::shuffled, Packing::apart);
  const auto blend = std::make_shared<const Blend>(stream);
  for (const auto& [rows, world] : {std::pair<int64_t, int64_t>{1, 1}, {3, 2}, {2, 3}}) {
    for (int64_t rank = 0; rank < world; ++rank) {
      BatchLoader loader(blend, {rows, world, rank}, 2, 21);
      for (int64_t micro_step = 0; micro_step < 5; ++micro_step) {
        const LoadedBatch& batch = loader.next();
        std::vector<int64_t> ends;
        for (int64_t b = 0; b < batch.samples; ++b) {
          for (const int64_t end : stream->document_ends(batch.first_sample + b)) ends.push_back(b * length + end);
          std::vector<uint8_t> trained(length);
          stream->read_trained(batch.first_sample + b, trained);
          for (int64_t s = 0; s < length; ++s)
            EXPECT_EQ(batch.targets_BS[static_cast<size_t>(b * length + s)] == LoadedBatch::ignored_target,
                      trained[static_cast<size_t>(s)] == 0);
        }
        EXPECT_EQ(batch.document_ends, ends);
      }
    }
  }
  int64_t targets = 0;
  for (int64_t i = 4; i < 19; ++i) targets += stream->targets(i);
  EXPECT_EQ(blend->content(4, 15).all_targets(), targets);
}

// Oracle: the mean over tokens of their documents' lengths, samples counted one by one.
TEST(DocumentLength, is_that_of_the_document_of_a_token) {
  const Set set({40, 40, 40, 40, 1});
  const auto stream = [&](Packing packing) {
    return Blend(std::make_shared<const SampleStream>(set.tokens, 40, 5, Order::in_order, packing));
  };
  EXPECT_EQ(document_length_of_tokens(stream(Packing::apart)), 40);
  EXPECT_EQ(document_length_of_tokens(stream(Packing::joined)), 40);
  const Set halves({30, 10, 30, 10, 1});
  const Blend blend(std::make_shared<const SampleStream>(halves.tokens, 40, 5, Order::in_order, Packing::apart));
  EXPECT_EQ(document_length_of_tokens(blend), (30 * 30 + 10 * 10) / 40);
}

}  // namespace
}  // namespace conclave

#include "data/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "data/fingerprint.h"
#include "set_on_disk.h"

namespace conclave {
namespace {

using testing::HasSubstr;

// Oracle: counted by hand. Unigram: 4 of 8 tokens are 9, the others once each: entropy 1/2 ln 2 + 4/8 ln 8 = 1.3863.
TEST(Inspect, tells_what_is_there) {
  const ScratchFolder folder;
  const IndexedTokens set(SetOnDisk::of({{9, 9, 1}, {9, 2, 300, 9}, {4}}).write(folder / "set"));
  const std::string text = inspect_text(set, 3);
  EXPECT_THAT(text, HasSubstr("8 (u16, 16 bytes)"));
  EXPECT_THAT(text, HasSubstr("3 in 3 sequences (index: 102 bytes)"));
  EXPECT_THAT(text, HasSubstr("shortest 1, median 3, mean 2.7, longest 4"));
  EXPECT_THAT(text, HasSubstr("2 at sequence length 3 (tokens at the end that fill none and are not read: 1)\n"));
  EXPECT_THAT(text, HasSubstr("300 (the model's vocab_size must be at least 301; 5 different ids occur)"));
  EXPECT_THAT(text, HasSubstr("1.3863 nats"));
  EXPECT_THAT(text, HasSubstr("9 9 1 9 2 300 9 4\n"));
  EXPECT_THAT(text, HasSubstr(fingerprint(set)));
  EXPECT_THAT(inspect_text(set, 8), HasSubstr("0 at sequence length 8 (too few tokens"));
}

TEST(Inspect, ids_beyond_any_table_are_counted) {
  const ScratchFolder folder;
  const int64_t huge = int64_t{1} << 60;
  const IndexedTokens set(SetOnDisk::of({{huge, 1, huge, 1}}, 5, 8).write(folder / "set"));
  EXPECT_THAT(inspect_text(set, 1),
              testing::AllOf(HasSubstr("0.6931 nats"), HasSubstr("2 different ids"), HasSubstr(std::to_string(huge))));
}

TEST(Inspect, shows_cross_entropies_with_their_perplexities) {
  NgramCrossEntropy result;
  result.unigram = 2.0;
  result.bigram = 1.0;
  result.targets = 77;
  EXPECT_THAT(ngram_text(result),
              testing::AllOf(HasSubstr("2.0000 nats a token (perplexity 7.39)"),
                             HasSubstr("1.0000 nats a token (perplexity 2.72)"), HasSubstr("77 validation targets")));
}

// A set of 5 MB, beyond the 4 MiB that are read whole: one changed token is seen in the first and last block, and in
// the index through a length.
TEST(Fingerprint, notices_what_it_promises) {
  const ScratchFolder folder;
  std::vector<int64_t> tokens(2'500'000, 7);
  const auto fingerprint_of = [&](const SetOnDisk& set) {
    return fingerprint(IndexedTokens(set.write(folder / "set")));
  };
  const auto plain = SetOnDisk::of({tokens});
  const std::string original = fingerprint_of(plain);
  EXPECT_EQ(original.size(), 16u);
  EXPECT_EQ(fingerprint_of(plain), original);
  for (const size_t place : {size_t{0}, tokens.size() - 1}) {
    auto changed = plain;
    changed.tokens[place] = 8;
    EXPECT_NE(fingerprint_of(changed), original) << place;
  }
  auto longer = tokens;
  longer.push_back(7);
  EXPECT_NE(fingerprint_of(SetOnDisk::of({longer})), original);
  const std::vector<int64_t> head(tokens.begin(), tokens.begin() + 100), tail(tokens.begin() + 100, tokens.end());
  EXPECT_NE(fingerprint_of(SetOnDisk::of({head, tail})), original);  // the same tokens, other documents
}

TEST(Fingerprint, of_a_small_set_sees_every_token) {
  const ScratchFolder folder;
  std::vector<int64_t> tokens(1000, 7);
  const std::string original = fingerprint(IndexedTokens(SetOnDisk::of({tokens}).write(folder / "set")));
  for (const size_t place : {0u, 1u, 500u, 999u}) {
    tokens[place] = 8;
    EXPECT_NE(fingerprint(IndexedTokens(SetOnDisk::of({tokens}).write(folder / "set"))), original) << place;
    tokens[place] = 7;
  }
}

}  // namespace
}  // namespace conclave

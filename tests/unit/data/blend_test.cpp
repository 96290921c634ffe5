// Oracle: the streams of the sources read one by one, and loops over the masks as they were written.
#include "data/blend.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "data/batch_loader.h"
#include "data/fingerprint.h"
#include "set_on_disk.h"

namespace conclave {
namespace {

constexpr int64_t length = 5;

// Sources whose tokens and masks tell where they are from: of token t of source s the id is 1000 s + t.
struct Sources {
  explicit Sources(const std::vector<int64_t>& sizes, uint64_t seed = 3) {
    std::mt19937_64 random(seed);
    for (size_t s = 0; s < sizes.size(); ++s) {
      std::vector<int64_t> document(static_cast<size_t>(sizes[s]));
      std::iota(document.begin(), document.end(), static_cast<int64_t>(1000 * s));
      SetOnDisk set = SetOnDisk::of({document});
      std::vector<uint8_t> mask(document.size(), 1);
      const std::filesystem::path prefix = folder / fmt::format("set{}", s);
      if (s % 2 == 1) {  // every second source has a mask, with a stretch of several samples without a target
        for (size_t t = 0; t < mask.size(); ++t) mask[t] = t < 4 * length ? 0 : random() % 2;
        set.write_masked(prefix, mask);
      } else {
        set.write(prefix);
      }
      masks.push_back(std::move(mask));
      streams.push_back(
          std::make_shared<SampleStream>(std::make_shared<IndexedTokens>(prefix), length, 5, Order::shuffled));
    }
  }
  std::shared_ptr<const Blend> blend(const std::vector<int64_t>& weights) const {
    std::vector<BlendSource> sources;
    for (size_t s = 0; s < streams.size(); ++s) sources.push_back({fmt::format("source{}", s), weights[s], streams[s]});
    return std::make_shared<const Blend>(std::move(sources));
  }
  ScratchFolder folder;
  std::vector<std::vector<uint8_t>> masks;
  std::vector<std::shared_ptr<const SampleStream>> streams;
};

// Whatever the shape of the batches, row by row what the sources hold; masked targets are ignored.
TEST(Blend, batches_are_the_samples_of_the_sources_at_every_layout) {
  const Sources sources({61, 203, 77});
  const auto blend = sources.blend({5, 2, 3});
  EXPECT_TRUE(blend->has_mask());
  for (const auto& [rows, world] : {std::pair<int64_t, int64_t>{1, 1}, {3, 2}, {2, 3}}) {
    std::vector<int64_t> next_of_source(3);
    std::vector<std::unique_ptr<BatchLoader>> ranks;
    for (int64_t rank = 0; rank < world; ++rank)
      ranks.push_back(std::make_unique<BatchLoader>(blend, BatchShape{rows, world, rank}));
    for (int64_t n = 0; n < 200; n += rows) {
      const LoadedBatch& batch = ranks[static_cast<size_t>(n / rows % world)]->next();
      ASSERT_EQ(batch.first_sample, n);
      ASSERT_EQ(static_cast<int64_t>(batch.source_B.size()), rows);
      for (int64_t b = 0; b < rows; ++b) {
        const int64_t source = batch.source_B[static_cast<size_t>(b)];
        std::vector<int64_t> sample(length + 1);
        sources.streams[static_cast<size_t>(source)]->read(next_of_source[static_cast<size_t>(source)]++, sample);
        for (int64_t s = 0; s < length; ++s) {
          const auto place = static_cast<size_t>(b * length + s);
          EXPECT_EQ(batch.inputs_BS[place], sample[static_cast<size_t>(s)]);
          const int64_t target = sample[static_cast<size_t>(s + 1)];
          const bool trained = sources.masks[static_cast<size_t>(source)][static_cast<size_t>(target % 1000)] != 0;
          EXPECT_EQ(batch.targets_BS[place], trained ? target : LoadedBatch::ignored_target);
        }
      }
    }
  }
}

// What a step divides by: the targets of any stretch of samples, counted one by one. Some have none.
TEST(Blend, counts_the_targets_of_any_stretch) {
  const Sources sources({61, 203});
  const auto blend = sources.blend({1, 4});
  int64_t samples_without_target = 0;
  for (int64_t first = 0; first < 120; first += 7) {
    for (const int64_t count : {0, 1, 2, 13}) {
      std::vector<int64_t> samples(2), targets(2);
      for (int64_t n = first; n < first + count; ++n) {
        const Blend::Place place = blend->at(n);
        const auto source = static_cast<size_t>(place.source);
        std::vector<int64_t> sample(length + 1);
        sources.streams[source]->read(place.sample, sample);
        int64_t here = 0;
        for (int64_t s = 1; s <= length; ++s)
          here += sources.masks[source][static_cast<size_t>(sample[static_cast<size_t>(s)] % 1000)];
        samples_without_target += here == 0 ? 1 : 0;
        ++samples[source];
        targets[source] += here;
      }
      const Blend::Content content = blend->content(first, count);
      EXPECT_EQ(content.samples, samples);
      EXPECT_EQ(content.targets, targets);
      EXPECT_EQ(content.all_targets(), targets[0] + targets[1]);
    }
  }
  EXPECT_GT(samples_without_target, 0);
}

TEST(Blend, of_one_source_is_its_stream) {
  const Sources sources({61});
  const Blend blend(sources.streams[0]);
  EXPECT_TRUE(blend.is_single());
  EXPECT_FALSE(blend.has_mask());
  for (int64_t n = 0; n < 50; ++n) {
    EXPECT_EQ(blend.at(n).source, 0);
    EXPECT_EQ(blend.at(n).sample, n);
  }
  EXPECT_EQ(fingerprint(blend), fingerprint(sources.streams[0]->set()));
}

TEST(Blend, has_another_fingerprint_when_shares_masks_or_order_change) {
  const Sources sources({61, 203}), other_mask({61, 203}, 4);
  const std::string original = fingerprint(*sources.blend({1, 4}));
  EXPECT_EQ(fingerprint(*sources.blend({1, 4})), original);
  EXPECT_NE(fingerprint(*sources.blend({1, 3})), original);
  EXPECT_NE(fingerprint(*other_mask.blend({1, 4})), original);
  EXPECT_NE(fingerprint(Blend({{"b", 4, sources.streams[1]}, {"a", 1, sources.streams[0]}})), original);
}

}  // namespace
}  // namespace conclave

#include "data/batch_loader.h"

#include <gtest/gtest.h>

#include <numeric>

#include "base/error.h"
#include "set_on_disk.h"

namespace conclave {
namespace {

constexpr int64_t length = 5;

std::shared_ptr<const SampleStream> stream_of(const ScratchFolder& folder, int64_t tokens, Order order,
                                              int64_t vocab_size = 60000) {
  std::vector<int64_t> document(static_cast<size_t>(tokens));
  std::iota(document.begin(), document.end(), 0);
  auto set = std::make_shared<IndexedTokens>(SetOnDisk::of({document}).write(folder / "set"), vocab_size);
  return std::make_shared<SampleStream>(std::move(set), length, 5, order);
}

std::shared_ptr<const Blend> blend_of(std::shared_ptr<const SampleStream> stream) {
  return std::make_shared<const Blend>(std::move(stream));
}

// Row `row` of a batch must be sample `index` of the stream, read directly.
void expect_row(const SampleStream& stream, const LoadedBatch& batch, int64_t row, int64_t index) {
  std::vector<int64_t> sample(length + 1);
  stream.read(index, sample);
  for (int64_t j = 0; j < length; ++j) {
    EXPECT_EQ(batch.inputs_BS[row * length + j], sample[j]);
    EXPECT_EQ(batch.targets_BS[row * length + j], sample[j + 1]);
  }
}

// Oracle: direct reads at the index formula of the design, in loops over micro-step, rank and row. 11 samples an epoch,
// so that epochs end within micro-steps and batches.
TEST(BatchLoader, equals_direct_reads_for_every_rank_through_epochs) {
  const ScratchFolder folder;
  const auto stream = stream_of(folder, 11 * length + 1, Order::shuffled);
  ASSERT_EQ(stream->samples_per_epoch(), 11);
  for (const int64_t world : {1, 2, 3}) {
    for (int64_t rank = 0; rank < world; ++rank) {
      for (const int64_t rows : {1, 2}) {
        BatchLoader loader(blend_of(stream), {rows, world, rank}, 3);
        for (int64_t micro_step = 0; micro_step < 16; ++micro_step) {
          const LoadedBatch& batch = loader.next();
          const int64_t first = 3 + (micro_step * world + rank) * rows;
          EXPECT_EQ(batch.first_sample, first);
          EXPECT_EQ(batch.samples, rows);
          for (int64_t b = 0; b < rows; ++b) expect_row(*stream, batch, b, first + b);
        }
      }
    }
  }
}

// The samples that loaders of one shape after the other read are those that one loader reads: none twice, none left
// out.
TEST(BatchLoader, another_shape_goes_on_where_the_one_before_ended) {
  const ScratchFolder folder;
  const auto stream = stream_of(folder, 200, Order::shuffled);
  int64_t next = 0;
  for (const auto& [rows, world] : {std::pair<int64_t, int64_t>{3, 2}, {1, 1}, {2, 4}, {5, 1}}) {
    std::vector<std::unique_ptr<BatchLoader>> ranks;
    for (int64_t rank = 0; rank < world; ++rank)
      ranks.push_back(std::make_unique<BatchLoader>(blend_of(stream), BatchShape{rows, world, rank}, next));
    for (int micro_step = 0; micro_step < 3; ++micro_step) {
      for (const auto& loader : ranks) {
        const LoadedBatch& batch = loader->next();
        for (int64_t b = 0; b < rows; ++b) expect_row(*stream, batch, b, next++);
      }
    }
  }
}

// Every layout with the same world_size * micro_batch_size sees the same samples in the same micro-step.
TEST(BatchLoader, the_split_over_ranks_does_not_change_a_micro_step) {
  const ScratchFolder folder;
  const auto stream = stream_of(folder, 300, Order::shuffled);
  BatchLoader alone(blend_of(stream), {4, 1, 0});
  BatchLoader half_a(blend_of(stream), {2, 2, 0}), half_b(blend_of(stream), {2, 2, 1});
  for (int step = 0; step < 20; ++step) {
    const LoadedBatch& whole = alone.next();
    std::vector<int64_t> joined = half_a.next().inputs_BS;
    const auto& second = half_b.next().inputs_BS;
    joined.insert(joined.end(), second.begin(), second.end());
    EXPECT_EQ(whole.inputs_BS, joined);
  }
}

// 7 samples over 2 ranks of 2 rows: the second micro-step holds 2 + 1, the third nothing.
TEST(BatchLoader, rows_behind_the_last_sample_are_ignored) {
  const ScratchFolder folder;
  const auto stream = stream_of(folder, 7 * length + 1, Order::in_order);
  BatchLoader loader(blend_of(stream), {2, 2, 1}, 0, stream->samples_per_epoch());
  EXPECT_EQ(loader.next().samples, 2);
  const LoadedBatch& partial = loader.next();
  EXPECT_EQ(partial.samples, 1);
  expect_row(*stream, partial, 0, 6);
  for (int64_t j = length; j < 2 * length; ++j) {
    EXPECT_EQ(partial.inputs_BS[j], 0);
    EXPECT_EQ(partial.targets_BS[j], LoadedBatch::ignored_target);
  }
  const LoadedBatch& empty = loader.next();
  EXPECT_EQ(empty.samples, 0);
  for (const int64_t target : empty.targets_BS) EXPECT_EQ(target, LoadedBatch::ignored_target);
}

// Token 23 is outside the vocabulary. It is in sample 4 (tokens 20 to 25), hence in the third batch of two rows.
TEST(BatchLoader, a_bad_token_surfaces_at_the_batch_that_holds_it_and_stays) {
  const ScratchFolder folder;
  BatchLoader loader(blend_of(stream_of(folder, 100, Order::in_order, 23)), {2, 1, 0});
  loader.next();
  loader.next();
  EXPECT_THROW(loader.next(), UserError);
  EXPECT_THROW(loader.next(), UserError);
}

TEST(BatchLoader, can_be_dropped_at_any_moment) {
  const ScratchFolder folder;
  const auto stream = stream_of(folder, 100, Order::shuffled);
  for (int used = 0; used < 4; ++used) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      BatchLoader loader(blend_of(stream), {2, 1, 0});
      for (int j = 0; j < used; ++j) EXPECT_EQ(loader.next().first_sample, 2 * j);
    }
  }
}

}  // namespace
}  // namespace conclave

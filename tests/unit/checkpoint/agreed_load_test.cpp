// Saves behind the caller's back, and loads that all ranks do alike. Ranks are threads (thread_world.h).
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "checkpoint/agreed_load.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/damaged_checkpoint.h"
#include "checkpoint/rank_texts.h"
#include "thread_world.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::Each;
using testing::HasSubstr;

constexpr int ranks = 3;
constexpr int64_t per_rank = 50;

// A rank's third of a tensor of step numbers, so that a slice tells of which step it is.
std::vector<TensorSlice> slices_of(int rank, float value) {
  return {{"t", {ranks * per_rank}, rank * per_rank, at::full({per_rank}, value)}};
}

void save(const std::filesystem::path& folder, int64_t step) {
  ASSERT_EQ(run_ranks(ranks,
                      [&](Communicator& world) {
                        save_checkpoint(folder, {.step = step}, slices_of(world.rank(), static_cast<float>(step)),
                                        world);
                      }),
            no_failures(ranks));
}

// Loads on all ranks; what each of them has then, or threw.
std::vector<std::string> load(
    const std::filesystem::path& folder, WhenDamaged when_damaged,
    const std::function<void(int rank, const CheckpointReader&)>& check = [](int, auto&) {}) {
  std::vector<std::string> loaded(ranks);
  const std::vector<std::string> failures = run_ranks(ranks, [&](Communicator& world) {
    const std::vector<TensorSlice> slices = slices_of(world.rank(), -1);
    // Only rank 0's view of the folder counts.
    const auto candidates =
        world.rank() == 0 ? checkpoints_to_try(folder) : std::vector<std::filesystem::path>{"elsewhere"};
    const auto found = load_agreed(candidates, world, when_damaged, HashCheck::verify, [&](const CheckpointReader& r) {
      check(world.rank(), r);
      return slices;
    });
    loaded[static_cast<size_t>(world.rank())] =
        found ? fmt::format("step {} of {}", slices[0].data.max().item<float>(), found->state.step) : "nothing";
  });
  for (size_t rank = 0; rank < ranks; ++rank)
    if (!failures[rank].empty()) loaded[rank] = failures[rank];
  return loaded;
}

void flip_last_byte(const std::filesystem::path& file) {
  std::string bytes = read_bytes(file);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_bytes(file, bytes);
}

TEST(AgreedLoad, all_ranks_take_the_newest_that_none_finds_damaged) {
  const TestFolder folder;
  EXPECT_THAT(load(folder.path(), WhenDamaged::stop), Each("nothing"));
  for (int64_t step : {1, 2, 3}) save(folder.path(), step);
  EXPECT_THAT(load(folder.path(), WhenDamaged::stop), Each("step 3 of 3"));
  // Only rank 2 reads what is damaged.
  flip_last_byte(folder / "step-00000003" / "rank-00002.safetensors");
  EXPECT_THAT(load(folder.path(), WhenDamaged::try_next), Each("step 2 of 2"));
  EXPECT_THAT(load(folder.path(), WhenDamaged::stop),
              Each(AllOf(HasSubstr("rank-00002.safetensors"), HasSubstr("\"t\""), HasSubstr("hash"))));
  flip_last_byte(folder / "step-00000002" / "rank-00000.safetensors");
  std::filesystem::remove(folder / "step-00000001" / "manifest.json");
  EXPECT_THAT(load(folder.path(), WhenDamaged::try_next), Each(HasSubstr("no manifest.json")));
}

TEST(AgreedLoad, what_does_not_suit_the_job_is_no_damage) {
  const TestFolder folder;
  for (int64_t step : {1, 2}) save(folder.path(), step);
  EXPECT_THAT(load(folder.path(), WhenDamaged::try_next,
                   [](int rank, const CheckpointReader&) {
                     if (rank == 1) user_error("another job");
                   }),
              Each(HasSubstr("another job")));
}

// Ranks that fail in different ways still throw the same kind, or one of them would go on without the others.
TEST(AgreedLoad, two_failures_of_different_kinds_are_one) {
  const TestFolder folder;
  for (int64_t step : {1, 2}) save(folder.path(), step);
  flip_last_byte(folder / "step-00000002" / "rank-00000.safetensors");
  const auto rank_1_refuses = [](int rank, const CheckpointReader& reader) {
    if (rank == 1 && reader.state().step == 2) user_error("another job");
  };
  EXPECT_THAT(load(folder.path(), WhenDamaged::try_next, rank_1_refuses), Each("step 1 of 1"));
}

TEST(CheckpointWriter, saves_behind_while_the_slices_change) {
  const TestFolder folder;
  ASSERT_EQ(run_ranks(ranks,
                      [&](Communicator& world) {
                        CheckpointWriter writer(folder.path(), world, Retention{.newest = 2});
                        for (int64_t step : {1, 2, 3}) {
                          const auto slices = slices_of(world.rank(), static_cast<float>(step));
                          writer.begin({.step = step}, slices);
                          writer.take_back();
                          slices[0].data.fill_(-5);
                          EXPECT_EQ(writer.saving(), step);
                          EXPECT_EQ(writer.finish().step, step);
                          EXPECT_EQ(writer.saving(), std::nullopt);
                        }
                      }),
            no_failures(ranks));
  EXPECT_THAT(load(folder.path(), WhenDamaged::stop), Each("step 3 of 3"));
  EXPECT_EQ(list_checkpoints(folder.path()).size(), 2u);
}

TEST(CheckpointWriter, goes_on_when_no_rank_is_busy) {
  const TestFolder folder;
  ASSERT_EQ(run_ranks(ranks,
                      [&](Communicator& world) {
                        CheckpointWriter writer(folder.path(), world);
                        writer.begin({.step = 9}, slices_of(world.rank(), 9));
                        int calls = 0;
                        for (bool done = false; !done;) {
                          const at::Tensor busy = at::full({1}, static_cast<int64_t>(writer.is_busy()), at::kLong);
                          world.all_reduce(busy, Reduction::max).wait();
                          if (busy.item<int64_t>() != 0) continue;
                          done = writer.go_on().has_value();
                          ++calls;
                        }
                        EXPECT_EQ(calls, 2);
                      }),
            no_failures(ranks));
  EXPECT_THAT(load(folder.path(), WhenDamaged::stop), Each("step 9 of 9"));
}

TEST(CheckpointWriter, a_failure_of_one_thread_is_told_to_all_and_the_next_save_succeeds) {
  const TestFolder folder;
  save(folder.path(), 1);
  ASSERT_EQ(run_ranks(ranks,
                      [&](Communicator& world) {
                        CheckpointWriter writer(folder.path(), world);
                        auto slices = slices_of(world.rank(), 2);
                        if (world.rank() == 1) slices[0].begin += 1;  // a gap, which rank 0 finds while it publishes
                        writer.begin({.step = 2}, slices);
                        EXPECT_THAT(message_of<InvariantError>([&] { writer.finish(); }), HasSubstr("gap"));
                        EXPECT_EQ(writer.saving(), std::nullopt);
                        EXPECT_FALSE(std::filesystem::exists(folder / ".tmp-step-00000002") && world.rank() == 0);
                        world.barrier();
                        writer.begin({.step = 3}, slices_of(world.rank(), 3));
                        writer.finish();
                      }),
            no_failures(ranks));
  EXPECT_THAT(load(folder.path(), WhenDamaged::stop), Each("step 3 of 3"));
  EXPECT_EQ(list_checkpoints(folder.path()).size(), 2u);
}

TEST(CheckpointWriter, a_writer_that_is_destroyed_gives_its_save_up) {
  const TestFolder folder;
  save(folder.path(), 1);
  ASSERT_EQ(run_ranks(ranks,
                      [&](Communicator& world) {
                        CheckpointWriter writer(folder.path(), world);
                        writer.begin({.step = 2}, slices_of(world.rank(), 2));
                      }),
            no_failures(ranks));
  EXPECT_THAT(load(folder.path(), WhenDamaged::stop), Each("step 1 of 1"));
  save(folder.path(), 2);
  EXPECT_THAT(load(folder.path(), WhenDamaged::stop), Each("step 2 of 2"));
}

TEST(Texts, reach_all_ranks) {
  EXPECT_EQ(run_ranks(3,
                      [](Communicator& world) {
                        const std::string own(static_cast<size_t>(world.rank() * 5),
                                              static_cast<char>('a' + world.rank()));
                        EXPECT_EQ(gather_texts(world, own), (std::vector<std::string>{"", "bbbbb", "cccccccccc"}));
                        EXPECT_EQ(gather_texts(world, ""), (std::vector<std::string>{"", "", ""}));
                        EXPECT_EQ(broadcast_text(world, 1, own), "bbbbb");
                        EXPECT_EQ(broadcast_text(world, 0, own), "");
                      }),
            no_failures(3));
}

}  // namespace
}  // namespace conclave

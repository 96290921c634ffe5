#include "checkpoint/lent_blocks.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "base/error.h"
#include "memory/memory_category.h"
#include "thread_world.h"

namespace conclave {
namespace {

const bool counting = (install_counting_allocator(), true);

constexpr int blocks = 6;

// Block i is full of i + 1, of types of 4, 8 and 2 bytes and of odd sizes.
std::vector<at::Tensor> numbered_blocks() {
  const at::ScalarType types[] = {at::kFloat, at::kLong, at::kBFloat16};
  std::vector<at::Tensor> made;
  for (int i = 0; i < blocks; ++i) made.push_back(at::full({100003 + i}, i + 1, types[i % 3]));
  return made;
}

int64_t copied_bytes() {
  return memory_report().now.of[static_cast<int>(MemoryCategory::checkpoint)];
}

// A reader that has read `before` blocks when the owner takes the rest back and overwrites all. The owner asks while
// the reader still works on its block, so it must wait for it.
class LentBlocksTakenBack : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(After, LentBlocksTakenBack, ::testing::Range(0, blocks + 1));

TEST_P(LentBlocksTakenBack, are_read_as_they_were) {
  const int before = GetParam();
  const std::vector<at::Tensor> memory = numbered_blocks();
  LentBlocks lent;
  for (int round = 0; round < 3; ++round) {  // the second time its room is there
    for (int i = 0; i < blocks; ++i) memory[i].fill_(i + 1);
    lent.lend(memory);
    for (int i = 0; i < before; ++i) ASSERT_EQ(lent.next()[0].item<double>(), i + 1);
    std::atomic<bool> is_back = false, is_overwritten = false;
    std::thread owner([&] {
      lent.take_back();
      is_back = true;
      for (const at::Tensor& block : memory) block.fill_(-1);
      is_overwritten = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    EXPECT_FALSE(is_back) << "while block " << before << " is being read";
    for (int i = before; i < blocks; ++i) {
      const at::Tensor block = lent.next();
      // Not longer: had the owner not asked yet, it would wait for the next call.
      for (int waited = 0; i == before && !is_overwritten && waited < 200; ++waited)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      EXPECT_TRUE((block == i + 1).all().item<bool>()) << "block " << i;
      EXPECT_EQ(block.scalar_type(), memory[i].scalar_type());
      EXPECT_EQ(block.sizes(), memory[i].sizes());
    }
    EXPECT_FALSE(lent.next().defined());
    lent.end();
    owner.join();
  }
}

TEST(LentBlocks, are_not_copied_when_nobody_wants_them_back) {
  ASSERT_TRUE(counting);
  ASSERT_EQ(copied_bytes(), 0);
  const std::vector<at::Tensor> memory = numbered_blocks();
  LentBlocks lent;
  lent.lend(memory);
  for (const at::Tensor& block : memory) EXPECT_EQ(lent.next().data_ptr(), block.data_ptr());
  lent.end();
  lent.take_back();  // does not wait
  EXPECT_EQ(copied_bytes(), 0);
}

TEST(LentBlocks, are_free_when_the_reader_gives_up) {
  LentBlocks lent;
  lent.take_back();  // nothing is lent yet
  lent.lend(numbered_blocks());
  EXPECT_THAT(message_of<InvariantError>([&] { lent.lend(numbered_blocks()); }),
              ::testing::HasSubstr("6 blocks are lent"));
  lent.next();
  std::thread reader([&] { lent.end(); });
  lent.take_back();
  reader.join();
  lent.lend(numbered_blocks());
  EXPECT_EQ(lent.next()[0].item<double>(), 1);
  lent.end();
}

}  // namespace
}  // namespace conclave

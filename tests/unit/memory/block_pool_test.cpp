#include "memory/block_pool.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <random>
#include <vector>

namespace conclave {
namespace {

constexpr size_t page = 4096;

// Pages of [begin, begin + bytes) that are in memory, as the kernel counts them (mincore(2) tells of anonymous memory
// whether a page was touched and not given back).
size_t resident_pages(const char* begin, size_t bytes) {
  std::vector<unsigned char> pages(bytes / page);
  if (::mincore(const_cast<char*>(begin), bytes, pages.data()) != 0) return SIZE_MAX;
  size_t count = 0;
  for (unsigned char in_memory : pages) count += in_memory & 1;
  return count;
}

TEST(BlockPool, gives_freed_memory_out_again) {
  BlockPool pool(64 * page);
  char* a = static_cast<char*>(pool.allocate(3 * page).data);
  char* b = static_cast<char*>(pool.allocate(5 * page).data);
  std::memset(a, 1, 3 * page);
  pool.free(a, 3 * page);
  const BlockPool::Block again = pool.allocate(2 * page + 1);
  EXPECT_EQ(again.data, a);  // the place that is resident, not a new one
  EXPECT_EQ(again.fresh, 0u);
  EXPECT_EQ(pool.use().resident, 8 * page);
  EXPECT_EQ(pool.use().in_use, 8 * page);
  pool.free(b, 5 * page);
  EXPECT_EQ(pool.use().in_use, 3 * page);
  EXPECT_EQ(pool.use().most_in_use, 8 * page);
}

TEST(BlockPool, refuses_what_does_not_fit) {
  BlockPool pool(4 * page);
  void* a = pool.allocate(3 * page).data;
  EXPECT_NE(a, nullptr);
  EXPECT_EQ(pool.allocate(2 * page).data, nullptr);
  pool.free(a, 3 * page);
  EXPECT_NE(pool.allocate(4 * page).data, nullptr);  // neighbours are one again
}

// A block that fits nowhere: the free pages elsewhere go back to the system before new ones are touched.
TEST(BlockPool, what_is_resident_never_exceeds_the_most_that_was_needed) {
  BlockPool pool(256 * page);
  char* base = static_cast<char*>(pool.allocate(10 * page).data);
  char* between = static_cast<char*>(pool.allocate(page).data);
  std::memset(base, 1, 10 * page);
  std::memset(between, 2, page);
  pool.free(base, 10 * page);
  const BlockPool::Block block = pool.allocate(10 * page + 1);  // 11 pages do not fit into 10
  EXPECT_GT(block.fresh, 0u);
  char* larger = static_cast<char*>(block.data);
  std::memset(larger, 3, 10 * page + 1);
  EXPECT_EQ(pool.use().resident, 12 * page);
  EXPECT_EQ(pool.use().most_in_use, 12 * page);
  EXPECT_EQ(resident_pages(base, 256 * page), 12u);
  EXPECT_EQ(between[page - 1], 2);
}

// Large blocks may have huge pages, which must not reach beyond them: neither while they are there, nor when small ones
// come to their places.
TEST(BlockPool, holds_no_more_than_blocks_of_any_size_fill) {
  constexpr size_t large = (size_t{21} << 20) + 3 * page;
  BlockPool pool(4 * large);
  const char* base = nullptr;
  const auto touched = [&](size_t bytes) {
    char* block = static_cast<char*>(pool.allocate(bytes).data);
    std::memset(block, 1, bytes);
    if (base == nullptr) base = block;
    return block;
  };
  touched(3 * page);
  char* first = touched(large);
  touched(page);
  EXPECT_EQ(resident_pages(base, 4 * large), (large + 4 * page) / page);
  pool.free(first, large);
  touched(large + page);  // does not fit: what was freed goes back
  EXPECT_LE(resident_pages(base, 4 * large) * page, pool.use().resident);
  for (int i = 0; i < 200; ++i) touched(5 * page);
  EXPECT_LE(resident_pages(base, 4 * large) * page, pool.use().resident);
}

// Steps forward and back through eight layers, whose blocks differ in size by a twentieth, as those of routed rows do,
// beside much that stays. Without the kept part every step asks for some 1450 pages.
TEST(BlockPool, asks_for_nothing_new_after_some_steps) {
  const unsigned seed = 2;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  BlockPool pool(size_t{1} << 34);
  pool.allocate(100'000 * page);
  size_t late = 0;
  using Sized = std::pair<void*, size_t>;
  const auto give = [&](const Sized& block) { pool.free(block.first, block.second); };
  for (int step = 0; step < 200; ++step) {
    const auto take = [&](size_t least, size_t spread) {
      const size_t bytes = (least + random() % spread) * page;
      const BlockPool::Block block = pool.allocate(bytes);
      if (step >= 100) late += block.fresh;
      return Sized{block.data, bytes};
    };
    std::vector<Sized> kept;
    for (int layer = 0; layer < 8; ++layer) {
      const Sized rows = take(400, 20);
      kept.push_back(take(800, 30));
      const Sized out = take(400, 20);
      give(rows);
      kept.push_back(take(200, 1));
      give(out);
    }
    for (; !kept.empty(); kept.resize(kept.size() - 2)) {
      const Sized grad = take(400, 20);
      give(kept[kept.size() - 1]);
      const Sized more = take(600, 20);
      give(kept[kept.size() - 2]);
      give(grad);
      give(more);
    }
  }
  EXPECT_EQ(late, 0u);
}

// Oracle: a map from block to the byte it was filled with; blocks never overlap, never lose their content, and the
// kernel's own count of pages stays within the most that was in use.
TEST(BlockPool, keeps_every_block_in_a_long_random_run) {
  const unsigned seed = 11;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  constexpr size_t capacity = 4096 * page;
  BlockPool pool(capacity);
  char* base = static_cast<char*>(pool.allocate(1).data);
  struct Block {
    char* begin;
    size_t bytes;
    unsigned char fill;
  };
  std::vector<Block> blocks;
  for (int round = 0; round < 4000; ++round) {
    if (blocks.size() < 40 && random() % 2 == 0) {
      const size_t bytes = 1 + random() % (40 * page);
      char* begin = static_cast<char*>(pool.allocate(bytes).data);
      ASSERT_NE(begin, nullptr);
      blocks.push_back({begin, bytes, static_cast<unsigned char>(random() % 256)});
      std::memset(begin, blocks.back().fill, bytes);
    } else if (!blocks.empty()) {
      const size_t which = random() % blocks.size();
      const Block block = blocks[which];
      for (size_t i = 0; i < block.bytes; i += 997)
        ASSERT_EQ(static_cast<unsigned char>(block.begin[i]), block.fill) << "round " << round;
      pool.free(block.begin, block.bytes);
      blocks[which] = blocks.back();
      blocks.pop_back();
    }
    const BlockPool::Use use = pool.use();
    ASSERT_LE(use.in_use, use.resident);
    ASSERT_LE(use.resident, use.most_in_use + use.most_in_use / BlockPool::kept_part);
    if (round % 100 == 0) {
      ASSERT_LE(resident_pages(base, capacity), use.resident / page);
    }
  }
}

}  // namespace
}  // namespace conclave

#include "memory/memory_category.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <thread>

namespace conclave {
namespace {

// Before any tensor of this program.
const bool installed = (install_counting_allocator(), true);

constexpr int index_of(MemoryCategory category) {
  return static_cast<int>(category);
}
at::Tensor bytes(int64_t count) {
  return at::empty({count}, at::kByte);
}

// Oracle: the number of bytes asked for, exactly.
class Memory : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(installed);
    reset_memory_peaks();
    before_ = memory_report();
  }
  int64_t now(MemoryCategory category) const {
    return memory_report().now.of[index_of(category)] - before_.now.of[index_of(category)];
  }
  int64_t total() const { return memory_report().now.total - before_.now.total; }
  MemoryReport before_;
};

TEST_F(Memory, counts_under_the_category_of_the_allocation_wherever_it_is_freed) {
  at::Tensor kept;
  {
    MemoryScope scope(MemoryCategory::dispatch);
    kept = bytes(1001);
    EXPECT_EQ(now(MemoryCategory::dispatch), 1001);
  }
  EXPECT_EQ(now(MemoryCategory::dispatch), 1001);
  {
    MemoryScope scope(MemoryCategory::logits);
    kept.reset();
  }
  EXPECT_EQ(now(MemoryCategory::dispatch), 0);
  EXPECT_EQ(now(MemoryCategory::logits), 0);
  EXPECT_EQ(total(), 0);
}

TEST_F(Memory, scopes_nest_and_end) {
  MemoryScope outer(MemoryCategory::activations);
  const at::Tensor first = bytes(10);
  {
    MemoryScope inner(MemoryCategory::moments);
    const at::Tensor second = bytes(200);
    EXPECT_EQ(now(MemoryCategory::moments), 200);
  }
  const at::Tensor third = bytes(3000);
  EXPECT_EQ(now(MemoryCategory::activations), 3010);
  EXPECT_EQ(now(MemoryCategory::moments), 0);
}

TEST_F(Memory, a_scope_is_of_its_thread) {
  MemoryScope scope(MemoryCategory::gradients);
  at::Tensor of_thread;
  std::thread([&] { of_thread = bytes(77); }).join();
  EXPECT_EQ(now(MemoryCategory::gradients), 0);
  EXPECT_EQ(now(MemoryCategory::workspace), 77);
}

// a: 1000 alone; a + b = 1600; then c + a = 1500 < 1600: the peak is a + b, though c's own highest is later.
TEST_F(Memory, peaks_are_of_one_moment) {
  MemoryReport report;
  {
    MemoryScope scope(MemoryCategory::parameters);
    const at::Tensor a = bytes(1000);
    {
      MemoryScope inner(MemoryCategory::activations);
      const at::Tensor b = bytes(600);
    }
    MemoryScope inner(MemoryCategory::logits);
    const at::Tensor c = bytes(500);
    report = memory_report();
  }
  EXPECT_EQ(report.at_peak.total - before_.now.total, 1600);
  EXPECT_EQ(report.at_peak.of[index_of(MemoryCategory::activations)], 600);
  EXPECT_EQ(report.at_peak.of[index_of(MemoryCategory::logits)], 0);
  EXPECT_EQ(report.peak_of.of[index_of(MemoryCategory::logits)], 500);
  EXPECT_EQ(report.peak_of.total, report.at_peak.total);
  reset_memory_peaks();
  EXPECT_EQ(memory_report().at_peak.total, memory_report().now.total);
  EXPECT_EQ(memory_report().peak_of.of[index_of(MemoryCategory::activations)], 0);
}

// Larger than anything before, so that the system must be asked; the second time it need not.
TEST_F(Memory, counts_large_blocks_that_the_process_did_not_have) {
  constexpr int64_t size = int64_t{64} << 20;
  { const at::Tensor first = bytes(size); }
  EXPECT_EQ(memory_report().large_allocations, 1);
  { const at::Tensor again = bytes(size); }
  EXPECT_EQ(memory_report().large_allocations, 1);
  reset_memory_peaks();
  EXPECT_EQ(memory_report().large_allocations, 0);
}

TEST_F(Memory, blocks_are_aligned_and_empty_ones_cost_nothing) {
  for (const int64_t count : {1, 63, 64, 65, 4097})
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes(count).data_ptr()) % 64, 0u) << count;
  const at::Tensor empty = bytes(0);
  EXPECT_EQ(total(), 0);
}

TEST(MemoryCategory, every_category_has_a_name_of_its_own) {
  std::vector<std::string> names;
  for (int i = 0; i < memory_categories; ++i) names.emplace_back(name_of(static_cast<MemoryCategory>(i)));
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::unique(names.begin(), names.end()), names.end());
  EXPECT_STREQ(name_of(MemoryCategory::workspace), "workspace");
}

}  // namespace
}  // namespace conclave

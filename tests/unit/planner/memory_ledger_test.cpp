#include "planner/memory_ledger.h"

#include <gtest/gtest.h>

namespace conclave {
namespace {

using enum MemoryCategory;

// Oracle: by hand.
TEST(MemoryLedger, knows_the_highest_of_each_category_and_the_moment_of_the_whole) {
  MemoryLedger ledger;
  ledger.now_doing = {"forward of", "layers.0", "experts"};
  MemoryLedger::Block kept = ledger.hold(activations, 100);
  { const MemoryLedger::Block passing = ledger.hold(workspace, 70); }
  ledger.now_doing = {"backward of", "layers.1", ""};
  kept = ledger.hold(dispatch, 90);  // both are there for a moment, then the first is freed
  EXPECT_EQ(ledger.now().total, 90);
  EXPECT_EQ(ledger.peak_of().total, 190);
  EXPECT_EQ(ledger.peak_moment().text(), "backward of layers.1");
  EXPECT_EQ(ledger.at_peak().of[static_cast<int>(activations)], 100);
  EXPECT_EQ(ledger.at_peak().of[static_cast<int>(workspace)], 0);
  EXPECT_EQ(ledger.peak_of().of[static_cast<int>(workspace)], 70);
  kept.free();
  kept.free();
  EXPECT_EQ(ledger.now().total, 0);
}

TEST(MemoryLedger, a_moved_block_is_freed_once) {
  MemoryLedger ledger;
  {
    MemoryLedger::Block first = ledger.hold(logits, 8);
    MemoryLedger::Block second = std::move(first);
    EXPECT_EQ(first.bytes(), 0);
    EXPECT_EQ(second.bytes(), 8);
    EXPECT_EQ(ledger.now().total, 8);
  }
  EXPECT_EQ(ledger.now().total, 0);
}

}  // namespace
}  // namespace conclave

// The account of a step on paper. Oracle: by hand.
#include "device/paper_memory.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace conclave {
namespace {

using enum MemoryCategory;

at::Tensor room(int64_t bytes, MemoryCategory category = workspace) {
  const MemoryScope scope(category);
  return at::empty({bytes}, at::device(at::kMeta).dtype(at::kByte));
}

int64_t of(const MemoryUse& use, MemoryCategory category) {
  return use.of[static_cast<size_t>(category)];
}

TEST(PaperMemory, knows_the_highest_of_each_category_and_the_moment_of_the_whole) {
  PaperMemory memory;
  memory.set_units(3);
  at::Tensor kept;
  memory.begin("computing", 1);
  memory.begin("experts", 1);
  kept = room(100, activations);
  { const at::Tensor passing = room(70); }
  memory.end();
  memory.end();
  memory.begin("computing", 2);  // the head: from here on backward
  memory.end();
  memory.begin("computing", 1);
  const at::Tensor next = room(90, dispatch);  // both are there for a moment, then the first is freed
  kept.reset();
  memory.end();
  const MemoryReport report = memory.report();
  EXPECT_EQ(report.now.total, 90);
  EXPECT_EQ(report.peak_of.total, 190);
  EXPECT_EQ(memory.peak_moment({"embedding", "layers.0", "head"}), "backward of layers.0");
  EXPECT_EQ(of(report.at_peak, activations), 100);
  EXPECT_EQ(of(report.at_peak, workspace), 0);
  EXPECT_EQ(of(report.peak_of, workspace), 70);
}

TEST(PaperMemory, counts_what_an_operator_of_aten_allocates) {
  PaperMemory memory;
  const at::Tensor a = at::empty({4, 8}, at::device(at::kMeta)), b = at::empty({8, 16}, at::device(at::kMeta));
  const int64_t before = memory.report().now.total;
  at::Tensor product = at::mm(a, b);
  const at::Tensor view = product.narrow(0, 1, 2).t();
  EXPECT_EQ(memory.report().now.total - before, 4 * 16 * 4);
  product.reset();
  EXPECT_EQ(memory.report().now.total - before, 4 * 16 * 4) << "a view keeps it";
}

TEST(PaperMemory, says_where_in_a_step_the_peak_was) {
  const auto moment_of = [](std::initializer_list<std::pair<const char*, size_t>> ranges) {
    PaperMemory memory;
    memory.set_units(3);
    for (const auto& [name, unit] : ranges) memory.begin(name, unit);
    const at::Tensor block = room(10);
    return memory.peak_moment({"embedding", "layers.0", "head"});
  };
  EXPECT_EQ(moment_of({}), "setting up");
  EXPECT_EQ(moment_of({{"computing", 0}}), "forward of embedding");
  EXPECT_EQ(moment_of({{"computing", 1}, {"dispatch", 1}}), "forward of layers.0, dispatch");
  EXPECT_EQ(moment_of({{"computing", 2}}), "head, loss");
  EXPECT_EQ(moment_of({{"optimizer", 3}}), "optimizer");
}

}  // namespace
}  // namespace conclave

#include "metrics/running_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>

namespace conclave {
namespace {

// Oracle: the size of a mapping made and touched here. Tolerance: 4 MiB, for what else the process touches between the
// two readings and for the per-thread page counts that the kernel adds up late.
TEST(RunningMemory, follows_a_mapping_and_remembers_its_peak) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "a sanitizer keeps shadow memory of its own for every byte touched";
#endif
  constexpr int64_t size = 64 << 20;
  constexpr int64_t tolerance = 4 << 20;
  const RunningMemory before = running_memory();
  ASSERT_GT(before.resident_bytes, 0);

  void* mapping = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(mapping, MAP_FAILED);
  std::memset(mapping, 1, size);
  const RunningMemory held = running_memory();
  EXPECT_NEAR(held.resident_bytes - before.resident_bytes, size, tolerance);

  ::munmap(mapping, size);
  const RunningMemory after = running_memory();
  EXPECT_NEAR(after.resident_bytes, before.resident_bytes, tolerance);
  EXPECT_GE(after.peak_resident_bytes, before.resident_bytes + size - tolerance);
}

}  // namespace
}  // namespace conclave

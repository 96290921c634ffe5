// Accounting of tensor memory: every byte ATen allocates is counted under the category in force where it was allocated,
// and leaves the account when it is freed, wherever that happens. The planner predicts the same categories.
#pragma once

#include <cstdint>

#include "base/memory_use.h"

namespace conclave {

// The category of allocations made by this thread while the scope lives. Scopes nest.
class MemoryScope {
 public:
  explicit MemoryScope(MemoryCategory category);
  ~MemoryScope();
  MemoryScope(const MemoryScope&) = delete;
  MemoryScope& operator=(const MemoryScope&) = delete;

 private:
  MemoryCategory outer_;
};

MemoryCategory current_memory_category();

struct MemoryReport {
  MemoryUse now;
  MemoryUse at_peak;              // the categories at the moment of the highest total
  MemoryUse peak_of;              // each category's own highest; total is the highest total
  int64_t large_allocations = 0;  // for which 1 MiB or more was asked of the system, since the last reset
};

// Makes ATen's CPU allocations counted ones. Call once, before the first tensor.
void install_counting_allocator();

MemoryReport memory_report();

// The peaks start anew from what is allocated now.
void reset_memory_peaks();

}  // namespace conclave

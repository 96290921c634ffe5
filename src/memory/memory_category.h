// Accounting of tensor memory: every byte ATen allocates is counted under the category in force where it was allocated,
// and leaves the account when it is freed, wherever that happens. The planner predicts the same categories.
#pragma once

#include <array>
#include <cstdint>

#include <c10/core/Device.h>

namespace conclave {

enum class MemoryCategory : int {
  parameters,            // fp32 shards
  moments,               // AdamW's two
  gradients,             // reduced shards
  unsharded_parameters,  // gathered units in the compute dtype
  unsharded_gradients,   // a unit's full gradient, and what its reduction holds
  activations,           // kept from forward to backward
  dispatch,              // rows on their way between ranks
  logits,                // of one chunk of tokens
  workspace,             // everything else, short-lived
};
inline constexpr int memory_categories = 9;

const char* name_of(MemoryCategory category);

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

struct MemoryUse {
  int64_t total = 0;
  std::array<int64_t, memory_categories> of{};
};

struct MemoryReport {
  MemoryUse now;
  MemoryUse at_peak;              // the categories at the moment of the highest total
  MemoryUse peak_of;              // each category's own highest; total is the highest total
  int64_t large_allocations = 0;  // blocks of 1 MiB and more asked of the system since the last reset
};

// Makes ATen's CPU allocations counted ones. Call once, before the first tensor.
void install_counting_allocator();

MemoryReport memory_report();

// The peaks start anew from what is allocated now.
void reset_memory_peaks();

}  // namespace conclave

// Bytes by category: what the engine counts and the planner predicts.
#pragma once

#include <array>
#include <cstdint>

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
  checkpoint,            // host copies of the shards that are being saved: parameters and moments
  workspace,             // everything else, short-lived
};
inline constexpr int memory_categories = 10;

const char* name_of(MemoryCategory category);

struct MemoryUse {
  int64_t total = 0;
  std::array<int64_t, memory_categories> of{};
};

}  // namespace conclave

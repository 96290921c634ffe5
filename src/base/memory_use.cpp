#include "base/memory_use.h"

namespace conclave {

const char* name_of(MemoryCategory category) {
  static constexpr std::array<const char*, memory_categories> names = {
      "parameters",  "moments",  "gradients", "unsharded_parameters", "unsharded_gradients",
      "activations", "dispatch", "logits",    "checkpoint",           "workspace"};
  return names[static_cast<int>(category)];
}

}  // namespace conclave

#include "kernels/cpu_features.h"

#include <ATen/core/ivalue.h>
#include <ATen/cpu/Utils.h>

#include <algorithm>

namespace conclave {

bool cpu_has(std::initializer_list<const char*> instruction_sets) {
  static const auto capabilities = at::cpu::get_cpu_capabilities();
  return std::all_of(instruction_sets.begin(), instruction_sets.end(), [](const char* name) {
    const auto found = capabilities.find(name);
    return found != capabilities.end() && found->second.toBool();
  });
}

}  // namespace conclave

// The names of SMP's configuration dictionary and MoEConfig that differ from the job file's. They are accepted in
// `parallel`, `memory` and `moe` as they are; a whole SMP dictionary can stand as the `parallel` section.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/fields.h"

namespace conclave {

// Another name of one of our keys.
struct OtherName {
  const char* smp;
  const char* ours;
};

const std::vector<OtherName>& smp_other_names();

// SMP's keys of which one value is the only way this engine works. They carry no information once checked.
struct SmpSettled {
  int64_t tensor_parallel_degree = 1;
  int64_t context_parallel_degree = 1;
  bool smp_moe = true;
  bool moe_all_to_all_dispatcher = true;
};

Fields fields_of(SmpSettled& settled);

}  // namespace conclave

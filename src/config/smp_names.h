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

inline const std::vector<OtherName>& smp_other_names() {
  static const std::vector<OtherName> names = {
      {"parallel.sm_activation_offloading", "memory.activation_offloading"},
      {"parallel.activation_loading_horizon", "memory.activation_loading_horizon"},
      {"parallel.random_seed", "run.seed"},
      {"memory.sm_activation_offloading", "memory.activation_offloading"},
      {"moe.random_seed", "run.seed"},
  };
  return names;
}

// SMP's keys of which one value is the only way this engine works. They carry no information once checked.
struct SmpSettled {
  int64_t tensor_parallel_degree = 1;
  int64_t context_parallel_degree = 1;
  bool smp_moe = true;
  bool moe_all_to_all_dispatcher = true;
};

template <class Visitor>
void describe(SmpSettled& settled, Visitor&& visitor) {
  visitor.field("parallel.tensor_parallel_degree", settled.tensor_parallel_degree,
                Only{"1", "ranks do not divide single matrices"}, "");
  visitor.field("parallel.context_parallel_degree", settled.context_parallel_degree,
                Only{"1", "ranks do not divide sequences"}, "");
  visitor.field("moe.smp_moe", settled.smp_moe, Only{"true", "there is one MoE layer"}, "");
  visitor.field("moe.moe_all_to_all_dispatcher", settled.moe_all_to_all_dispatcher,
                Only{"true", "the other way is moe.dispatcher: all_gather"}, "");
}

}  // namespace conclave

#include "config/smp_names.h"

namespace conclave {

const std::vector<OtherName>& smp_other_names() {
  static const std::vector<OtherName> names = {
      {"parallel.sm_activation_offloading", "memory.activation_offloading"},
      {"parallel.activation_loading_horizon", "memory.activation_loading_horizon"},
      {"parallel.random_seed", "run.seed"},
      {"memory.sm_activation_offloading", "memory.activation_offloading"},
      {"moe.random_seed", "run.seed"},
  };
  return names;
}

Fields fields_of(SmpSettled& settled) {
  Fields fields;
  fields.section("parallel", "");
  fields.field("parallel.tensor_parallel_degree", settled.tensor_parallel_degree,
               Only{"1", "ranks do not divide single matrices"}, "");
  fields.field("parallel.context_parallel_degree", settled.context_parallel_degree,
               Only{"1", "ranks do not divide sequences"}, "");
  fields.section("moe", "");
  fields.field("moe.smp_moe", settled.smp_moe, Only{"true", "there is one MoE layer"}, "");
  fields.field("moe.moe_all_to_all_dispatcher", settled.moe_all_to_all_dispatcher,
               Only{"true", "the other way is moe.dispatcher: all_gather"}, "");
  return fields;
}

}  // namespace conclave

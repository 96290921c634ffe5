#include "config/parallel_section.h"

#include "config/fields.h"

namespace conclave {

void describe(ParallelConfig& parallel, Fields& to) {
  to.section("parallel", "the layout of the ranks");
  to.field("parallel.expert_parallel_degree", parallel.expert_parallel_degree, NumberRange{1, largest_world},
           "ranks that divide the experts among them; divides the model's experts and the world size");
  to.field("parallel.hybrid_shard_degree", parallel.hybrid_shard_degree, NumberRange{0, largest_world},
           "ranks that divide the same experts, and with the expert axis everything else, among them; 0: all ranks");
  to.field("parallel.elastic", parallel.elastic, Anything{},
           "true: the degrees are the most; another world size takes the nearest that fit, and micro-steps to suit");
  to.field("parallel.prefetch_units", parallel.prefetch_units, NumberRange{0, most_layers},
           "units gathered ahead of the one that computes");
  to.field("parallel.reshard_after_forward", parallel.reshard_after_forward, Anything{},
           "false: gathered parameters stay from forward to backward, half the gathers for more memory; all but "
           "layers.4-7, layers.9: these stay");
}

}  // namespace conclave

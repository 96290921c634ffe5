#include "config/metrics_section.h"

#include "config/fields.h"

namespace conclave {

void describe(MetricsConfig& metrics, Fields& to) {
  to.section("metrics", "what is reported");
  to.field("metrics.tensorboard", metrics.tensorboard, Anything{}, "writes TensorBoard files");
  to.field("metrics.log_every", metrics.log_every, count_from(1),
           "steps between progress lines; metrics.jsonl has every step");
  to.field("metrics.record_routing", metrics.record_routing, Anything{},
           "writes the rows of each step, layer, rank and expert to routing.bin, which `plan --routing` replays");
}

}  // namespace conclave

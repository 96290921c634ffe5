#include "config/optimizer_section.h"

#include "config/fields.h"

namespace conclave {

void describe(OptimizerConfig& optimizer, Fields& to) {
  to.section("optimizer", "AdamW");
  to.field("optimizer.lr", optimizer.lr, more_than(0), "the highest learning rate");
  to.field("optimizer.beta1", optimizer.beta1, from_to_below(0, 1), "decay of the mean gradient");
  to.field("optimizer.beta2", optimizer.beta2, from_to_below(0, 1), "decay of the mean squared gradient");
  to.field("optimizer.eps", optimizer.eps, more_than(0), "added to the root of the mean squared gradient");
  to.field("optimizer.weight_decay", optimizer.weight_decay, at_least(0), "of all weights but norms");
  to.field("optimizer.grad_clip", optimizer.grad_clip, at_least(0), "the most the gradient norm may be; 0: any");
  to.field("optimizer.max_skipped_steps", optimizer.max_skipped_steps, size_of_at_least(0),
           "steps with a non-finite loss or gradient are skipped; the job stops after this many in a row");
}

}  // namespace conclave

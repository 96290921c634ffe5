#include "optim/adamw.h"

#include "kernels/adamw.h"

namespace conclave {

void AdamW::update(const OptimizerRange& range, const Update& update) const {
  adamw_step(range.parameter, range.state[0], range.state[1], range.gradient,
             {.lr = update.lr,
              .beta1 = config_.beta1,
              .beta2 = config_.beta2,
              .eps = config_.eps,
              .weight_decay = range.decay ? config_.weight_decay : 0.0,
              .step = update.number,
              .grad_scale = update.grad_scale});
}

std::unique_ptr<const OptimizerRule> make_optimizer_rule(const OptimizerConfig& config) {
  return std::make_unique<AdamW>(config);
}

}  // namespace conclave

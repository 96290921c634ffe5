#include "optim/optimizer.h"

#include <algorithm>

#include "kernels/adamw.h"
#include "kernels/values.h"

namespace conclave {

std::vector<double> Optimizer::gradient_squares(Communicator& world, at::Device device) const {
  at::Tensor squares = at::zeros({static_cast<int64_t>(units_.size())}, at::device(device).dtype(at::kDouble));
  for (size_t i = 0; i < units_.size(); ++i)
    for (const at::Tensor& gradient : units_[i].counted_gradients)
      squares[static_cast<int64_t>(i)] += sum_of_squares_tensor(gradient);
  world.all_reduce(squares).wait();
  squares = to_host(squares);
  const auto* sum = squares.const_data_ptr<double>();
  return {sum, sum + units_.size()};
}

void Optimizer::update(double lr, int64_t step, double gradient_norm) {
  AdamwStep update;
  update.lr = lr;
  update.beta1 = config_.beta1;
  update.beta2 = config_.beta2;
  update.eps = config_.eps;
  update.step = step;
  if (config_.grad_clip > 0) update.grad_scale = std::min(1.0, config_.grad_clip / (gradient_norm + 1e-6));
  for (const OptimizerUnit& unit : units_) {
    for (const OptimizerRange& range : unit.ranges) {
      update.weight_decay = range.decay ? config_.weight_decay : 0.0;
      adamw_step(range.parameter, range.exp_avg, range.exp_avg_sq, range.gradient, update);
    }
  }
}

}  // namespace conclave

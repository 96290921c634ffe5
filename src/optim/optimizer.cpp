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

void Optimizer::update(double lr, int64_t number, double gradient_norm) {
  Update update{lr, number};
  if (grad_clip_ > 0) update.grad_scale = std::min(1.0, grad_clip_ / (gradient_norm + 1e-6));
  for (const OptimizerUnit& unit : units_)
    for (const OptimizerRange& range : unit.ranges) rule_->update(range, update);
}

}  // namespace conclave

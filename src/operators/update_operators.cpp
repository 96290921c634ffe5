// torch.ops.conclave.adamw_, sum_of_squares, all_gather_, reduce_scatter_ and keep_large_blocks: what a step does
// beside forward and backward.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <mutex>

#include "base/error.h"
#include "kernels/adamw.h"
#include "memory/memory_category.h"
#include "operators/plugin_kernels.h"
#include "operators/process_group_communicator.h"

namespace conclave {
namespace {

// One update of each parameter, all fp32 and contiguous; gradients are multiplied by `grad_scale` first.
// NOLINTBEGIN(performance-unnecessary-value-param): PyTorch hands lists and strings by value
void adamw(at::TensorList parameters, at::TensorList exp_avgs, at::TensorList exp_avg_sqs, at::TensorList grads,
           int64_t step, double lr, double beta1, double beta2, double eps, double weight_decay, double grad_scale) {
  const size_t count = parameters.size();
  check_invariant(exp_avgs.size() == count && exp_avg_sqs.size() == count && grads.size() == count,
                  "adamw_: {} parameters, {} and {} moments, {} gradients", count, exp_avgs.size(), exp_avg_sqs.size(),
                  grads.size());
  const AdamwStep settings{lr, beta1, beta2, eps, weight_decay, step, grad_scale};
  for (size_t i = 0; i < count; ++i) {
    const OperatorDevice device(parameters[i]);
    adamw_step(parameters[i].view(-1), exp_avgs[i].view(-1), exp_avg_sqs[i].view(-1), grads[i].reshape(-1), settings);
  }
}

// Of fp32 tensors, as one double.
at::Tensor sum_of_squares_of(at::TensorList tensors) {
  at::Tensor sum;
  for (const at::Tensor& tensor : tensors) {
    const OperatorDevice device(tensor);
    const at::Tensor part = sum_of_squares_tensor(tensor.reshape(-1));
    sum = sum.defined() ? sum + part : part;
  }
  return sum.defined() ? sum : at::zeros({}, at::kDouble);
}

void all_gather(at::Tensor output, const at::Tensor& input, std::string group) {
  communicator_of("dense", group, input.device())->all_gather(output, input).wait();
}

void reduce_scatter(at::Tensor output, const at::Tensor& input, std::string group) {
  communicator_of("dense", group, input.device())->reduce_scatter(output, input).wait();
}
// NOLINTEND(performance-unnecessary-value-param)

void keep_large_blocks() {
  static std::once_flag once;
  std::call_once(once, install_counting_allocator);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.def(
      "adamw_(Tensor(a!)[] parameters, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor[] grads, int step, "
      "float lr, float beta1, float beta2, float eps, float weight_decay, float grad_scale) -> ()");
  library.def("sum_of_squares(Tensor[] tensors) -> Tensor");
  library.def("all_gather_(Tensor(a!) output, Tensor input, str group) -> ()");
  library.def("reduce_scatter_(Tensor(a!) output, Tensor input, str group) -> ()");
  // Memory of large tensors on the CPU stays with the process for the next ones, from now on.
  library.def("keep_large_blocks() -> ()", keep_large_blocks);
}

TORCH_LIBRARY_IMPL(conclave, CompositeExplicitAutograd, library) {
  library.impl("adamw_", adamw);
  library.impl("sum_of_squares", sum_of_squares_of);
  library.impl("all_gather_", all_gather);
  library.impl("reduce_scatter_", reduce_scatter);
}

}  // namespace conclave

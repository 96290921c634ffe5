#include "checkpoint/host_tensors.h"

#include <ATen/ATen.h>

#include <utility>

namespace conclave {

HostTensors::HostTensors(Communicator& inner, at::Device device)
    : Communicator(inner.name(), inner.rank(), inner.size()), inner_(inner), device_(device) {}

at::Tensor HostTensors::on_device(const at::Tensor& tensor) const {
  return tensor.to(device_, tensor.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
}

Pending HostTensors::all_gather(at::Tensor output, at::Tensor input) {
  const at::Tensor staged = on_device(output);
  inner_.all_gather(staged, on_device(input)).wait();
  output.copy_(staged);
  return {};
}

Pending HostTensors::reduce_scatter(at::Tensor output, at::Tensor input) {
  const at::Tensor staged = on_device(output);
  inner_.reduce_scatter(staged, on_device(input)).wait();
  output.copy_(staged);
  return {};
}

Pending HostTensors::all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                                std::vector<int64_t> input_splits) {
  const at::Tensor staged = on_device(output);
  inner_.all_to_all(staged, on_device(input), std::move(output_splits), std::move(input_splits)).wait();
  output.copy_(staged);
  return {};
}

Pending HostTensors::all_reduce(at::Tensor tensor, Reduction reduction) {
  const at::Tensor staged = on_device(tensor);
  inner_.all_reduce(staged, reduction).wait();
  tensor.copy_(staged);
  return {};
}

Pending HostTensors::broadcast(at::Tensor tensor, int root) {
  const at::Tensor staged = on_device(tensor);
  inner_.broadcast(staged, root).wait();
  tensor.copy_(staged);
  return {};
}

}  // namespace conclave

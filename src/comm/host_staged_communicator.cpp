#include "comm/host_staged_communicator.h"

#include <ATen/ATen.h>

namespace conclave {

namespace {

// Ready once `staged`, which the collective in flight fills, is back in `output`.
Pending copy_back(Pending in_flight, at::Tensor output, at::Tensor staged) {
  auto shared = std::make_shared<Pending>(std::move(in_flight));
  return Pending([shared, output, staged] {
    shared->wait();
    output.copy_(staged);
  });
}

at::Tensor on_host_like(const at::Tensor& tensor) {
  return at::empty(tensor.sizes(), tensor.options().device(at::kCPU));
}

// A copy, also of what is on the host already: the caller's tensor stays his until wait().
at::Tensor to_host(const at::Tensor& tensor) {
  return on_host_like(tensor).copy_(tensor);
}

}  // namespace

HostStagedCommunicator::HostStagedCommunicator(std::unique_ptr<Communicator> host)
    : Communicator(host->name(), host->rank(), host->size()), host_(std::move(host)) {}

Pending HostStagedCommunicator::all_gather(at::Tensor output, at::Tensor input) {
  at::Tensor staged = on_host_like(output);
  Pending in_flight = host_->all_gather(staged, to_host(input));
  return copy_back(std::move(in_flight), std::move(output), std::move(staged));
}

Pending HostStagedCommunicator::reduce_scatter(at::Tensor output, at::Tensor input) {
  at::Tensor staged = on_host_like(output);
  Pending in_flight = host_->reduce_scatter(staged, to_host(input));
  return copy_back(std::move(in_flight), std::move(output), std::move(staged));
}

Pending HostStagedCommunicator::all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                                           std::vector<int64_t> input_splits) {
  at::Tensor staged = on_host_like(output);
  Pending in_flight = host_->all_to_all(staged, to_host(input), std::move(output_splits), std::move(input_splits));
  return copy_back(std::move(in_flight), std::move(output), std::move(staged));
}

Pending HostStagedCommunicator::all_reduce(at::Tensor tensor, Reduction reduction) {
  at::Tensor staged = to_host(tensor);
  Pending in_flight = host_->all_reduce(staged, reduction);
  return copy_back(std::move(in_flight), std::move(tensor), std::move(staged));
}

Pending HostStagedCommunicator::broadcast(at::Tensor tensor, int root) {
  at::Tensor staged = to_host(tensor);
  Pending in_flight = host_->broadcast(staged, root);
  return copy_back(std::move(in_flight), std::move(tensor), std::move(staged));
}

}  // namespace conclave

#include "comm/counting_communicator.h"

#include "comm/shapes.h"

namespace conclave {

void TrafficCount::add(const std::string& axis, const char* operation, int64_t bytes) {
  std::lock_guard lock(mutex_);
  Traffic& traffic = counts_[{axis, operation}];
  ++traffic.calls;
  traffic.bytes += bytes;
}

TrafficByOperation TrafficCount::snapshot() const {
  std::lock_guard lock(mutex_);
  return counts_;
}

TrafficByOperation TrafficCount::reset() {
  std::lock_guard lock(mutex_);
  return std::exchange(counts_, {});
}

CountingCommunicator::CountingCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<TrafficCount> count)
    : Communicator(inner->name(), inner->rank(), inner->size()), inner_(std::move(inner)), count_(std::move(count)) {}

Pending CountingCommunicator::all_gather(at::Tensor output, at::Tensor input) {
  count_->add(name(), "all_gather", bytes_to_all_others(static_cast<int64_t>(input.nbytes()), size()));
  return inner_->all_gather(std::move(output), std::move(input));
}

Pending CountingCommunicator::reduce_scatter(at::Tensor output, at::Tensor input) {
  count_->add(name(), "reduce_scatter", bytes_to_all_others(static_cast<int64_t>(output.nbytes()), size()));
  return inner_->reduce_scatter(std::move(output), std::move(input));
}

Pending CountingCommunicator::all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                                         std::vector<int64_t> input_splits) {
  check_splits(output, input, output_splits, input_splits, rank(), size());
  count_->add(name(), "all_to_all", (input.size(0) - input_splits[rank()]) * row_bytes(input));
  return inner_->all_to_all(std::move(output), std::move(input), std::move(output_splits), std::move(input_splits));
}

Pending CountingCommunicator::all_reduce(at::Tensor tensor, Reduction reduction) {
  count_->add(name(), "all_reduce", all_reduce_bytes(tensor.numel(), tensor.element_size(), rank(), size()));
  return inner_->all_reduce(std::move(tensor), reduction);
}

Pending CountingCommunicator::broadcast(at::Tensor tensor, int root) {
  count_->add(name(), "broadcast",
              rank() == root ? bytes_to_all_others(static_cast<int64_t>(tensor.nbytes()), size()) : 0);
  return inner_->broadcast(std::move(tensor), root);
}

void CountingCommunicator::barrier() {
  count_->add(name(), "barrier", 0);
  inner_->barrier();
}

}  // namespace conclave

#include "operators/process_group_communicator.h"

#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>

#include "comm/gloo_communicator.h"
#include "comm/local_communicator.h"
#include "comm/rank_order.h"
#include "comm/shapes.h"
#include "operators/group_connection.h"

namespace conclave {
namespace {

// `tensors` live until the work is done.
Pending pending(c10::intrusive_ptr<c10d::Work> work, std::vector<at::Tensor> tensors) {
  return Pending([work = std::move(work), tensors = std::move(tensors)] { work->wait(); });
}

}  // namespace

ProcessGroupCommunicator::ProcessGroupCommunicator(std::string axis, c10::intrusive_ptr<c10d::ProcessGroup> group)
    : Communicator(std::move(axis), group->getRank(), group->getSize()), group_(std::move(group)) {}

Pending ProcessGroupCommunicator::all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                                             std::vector<int64_t> input_splits) {
  check_splits(output, input, output_splits, input_splits, rank(), size());
  return pending(group_->alltoall_base(output, input, output_splits, input_splits), {output, input});
}

Pending ProcessGroupCommunicator::all_gather(at::Tensor output, at::Tensor input) {
  check_parts("all_gather", output, input, size());
  at::Tensor repeated = input.flatten().repeat({size()}), received = output.flatten();
  std::vector<int64_t> splits(static_cast<size_t>(size()), input.numel());
  return pending(group_->alltoall_base(received, repeated, splits, splits), {received, repeated});
}

Pending ProcessGroupCommunicator::reduce_scatter(at::Tensor output, at::Tensor input) {
  check_parts("reduce_scatter", input, output, size());
  at::Tensor parts = input.flatten(), received = at::empty_like(parts);
  std::vector<int64_t> splits(static_cast<size_t>(size()), output.numel());
  auto work = group_->alltoall_base(received, parts, splits, splits);
  return Pending([work, parts, received, output = output.flatten(), size = size()]() mutable {
    work->wait();
    const at::Tensor part_PN = received.view({size, output.numel()});
    output.copy_(part_PN[0]);
    for (int rank = 1; rank < size; ++rank) output.add_(part_PN[rank]);
  });
}

Pending ProcessGroupCommunicator::all_reduce(at::Tensor tensor, Reduction reduction) {
  check_whole("all_reduce", tensor);
  if (tensor.is_cpu()) return all_reduce_in_rank_order(tensor, reduction);
  std::vector<at::Tensor> tensors{tensor};
  c10d::AllreduceOptions options;
  options.reduceOp = reduction == Reduction::sum ? c10d::ReduceOp::SUM : c10d::ReduceOp::MAX;
  return pending(group_->allreduce(tensors, options), {tensor});
}

Pending ProcessGroupCommunicator::all_reduce_in_rank_order(at::Tensor tensor, Reduction reduction) {
  at::Tensor all = at::empty({size(), tensor.numel()}, tensor.options());
  return Pending([gather = std::make_shared<Pending>(all_gather(all, tensor)), all, tensor, reduction]() mutable {
    gather->wait();
    std::vector<const void*> parts;
    for (int64_t rank = 0; rank < all.size(0); ++rank) parts.push_back(all[rank].data_ptr());
    reduce_in_order(tensor.scalar_type(), tensor.data_ptr(), parts, tensor.numel(), reduction, Threads::all);
  });
}

Pending ProcessGroupCommunicator::broadcast(at::Tensor tensor, int root) {
  check_whole("broadcast", tensor);
  check_root(root, size());
  std::vector<at::Tensor> tensors{tensor};
  c10d::BroadcastOptions options;
  options.rootRank = root;
  return pending(group_->broadcast(tensors, options), {tensor});
}

void ProcessGroupCommunicator::barrier() {
  group_->barrier()->wait();
}

std::unique_ptr<Communicator> communicator_of(const std::string& axis, const std::string& group_name,
                                              at::Device device) {
  if (group_name.empty()) return std::make_unique<LocalCommunicator>(axis);
  auto group = c10d::resolve_process_group(group_name);
  if (group->getSize() == 1) return std::make_unique<LocalCommunicator>(axis);
  if (auto gloo = device.is_cpu() ? gloo_of(*group) : nullptr)
    return std::make_unique<GlooCommunicator>(axis, group->getRank(), group->getSize(),
                                              connect(axis, group, std::move(gloo)));
  return std::make_unique<ProcessGroupCommunicator>(axis, std::move(group));
}

}  // namespace conclave

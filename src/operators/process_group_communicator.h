// Collectives over a process group that a PyTorch program has made: its backend moves the data (NCCL), its time-out and
// its errors are the program's own. CPU tensors of Gloo groups have a better way (group_connection.h).
//
// Built from all-to-all where Gloo's own collective doubles the traffic (all_gather, reduce_scatter); reductions are
// local and in rank order, but for all_reduce on a GPU.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "comm/communicator.h"

namespace conclave {

class ProcessGroupCommunicator final : public Communicator {
 public:
  ProcessGroupCommunicator(std::string axis, c10::intrusive_ptr<c10d::ProcessGroup> group);

  Pending all_gather(at::Tensor output, at::Tensor input) override;
  Pending reduce_scatter(at::Tensor output, at::Tensor input) override;
  Pending all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                     std::vector<int64_t> input_splits) override;
  Pending all_reduce(at::Tensor tensor, Reduction reduction) override;
  Pending broadcast(at::Tensor tensor, int root) override;
  void barrier() override;

 private:
  Pending all_reduce_in_rank_order(at::Tensor tensor, Reduction reduction);

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
};

// The communicator, for tensors on `device`, of the process group that PyTorch knows by `group_name`
// (ProcessGroup.group_name in Python); without a name, or for a group of one rank, one that copies. Collective over the
// group; not to be kept longer than it.
std::unique_ptr<Communicator> communicator_of(const std::string& axis, const std::string& group_name,
                                              at::Device device);

}  // namespace conclave

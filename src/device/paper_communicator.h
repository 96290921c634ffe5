// The ranks of one axis on paper: calls and bytes are counted as by a CountingCommunicator, time passes on the clock,
// and nothing is sent.
#pragma once

#include "comm/communicator.h"
#include "device/paper_device.h"
#include "mesh/layout.h"

namespace conclave {

class PaperCommunicator final : public Communicator {
 public:
  // `device` outlives it.
  PaperCommunicator(PaperDevice& device, const AxisGroup& group, const GroupOnNodes& on_nodes, const std::string& axis)
      : Communicator(axis, group.index, group.size()), device_(device), on_nodes_(on_nodes) {}

  Pending all_gather(at::Tensor output, at::Tensor input) override;
  Pending reduce_scatter(at::Tensor output, at::Tensor input) override;
  Pending all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                     std::vector<int64_t> input_splits) override;
  Pending all_reduce(at::Tensor tensor, Reduction reduction) override;
  Pending broadcast(at::Tensor tensor, int root) override;
  void barrier() override {}

 private:
  // `tensors`: stay until it is waited for.
  Pending start(const char* operation, CollectivePattern pattern, int64_t bytes, std::vector<at::Tensor> tensors);
  // Room for what other ranks send before it is summed, as Gloo's ranks need it.
  at::Tensor staged(int64_t bytes) const;

  PaperDevice& device_;
  GroupOnNodes on_nodes_;
};

}  // namespace conclave

// CPU tensors through a communicator that takes only those of its device, as NCCL does: what ranks tell each other
// about a checkpoint is on the host.
#pragma once

#include "comm/communicator.h"

namespace conclave {

// Every call copies its tensors to the device, waits for `inner`, and copies the result back. For small messages.
// Outlived by `inner`.
class HostTensors : public Communicator {
 public:
  HostTensors(Communicator& inner, at::Device device);

  Pending all_gather(at::Tensor output, at::Tensor input) override;
  Pending reduce_scatter(at::Tensor output, at::Tensor input) override;
  Pending all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                     std::vector<int64_t> input_splits) override;
  Pending all_reduce(at::Tensor tensor, Reduction reduction) override;
  Pending broadcast(at::Tensor tensor, int root) override;
  void barrier() override { inner_.barrier(); }

 private:
  at::Tensor on_device(const at::Tensor& tensor) const;

  Communicator& inner_;
  at::Device device_;
};

}  // namespace conclave

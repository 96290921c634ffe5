// Collectives between CUDA ranks over a communicator of the CPU, by way of the host's memory: for ranks that share a
// GPU, which NCCL refuses. Slow, and meant for checking that several ranks compute the right thing on one GPU. Calls
// wait for the device on the way out, wait() does on the way back.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace conclave {

class HostStagedCommunicator final : public Communicator {
 public:
  explicit HostStagedCommunicator(std::unique_ptr<Communicator> host);

  Pending all_gather(at::Tensor output, at::Tensor input) override;
  Pending reduce_scatter(at::Tensor output, at::Tensor input) override;
  Pending all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                     std::vector<int64_t> input_splits) override;
  Pending all_reduce(at::Tensor tensor, Reduction reduction) override;
  Pending broadcast(at::Tensor tensor, int root) override;
  void barrier() override { host_->barrier(); }

 private:
  std::unique_ptr<Communicator> host_;
};

}  // namespace conclave

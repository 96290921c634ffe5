// One rank of a large world without the others: nothing is sent, every call is ready at once, and shapes are checked as
// in earnest. For measuring memory and, inside a CountingCommunicator, traffic of layouts larger than the machine. The
// values are meaningless, though always finite if this rank's are:
//   all_gather: every part is this rank's; reduce_scatter: this rank's own part; all_to_all: this rank's rows, over and
//   over, or zeros if it has none; all_reduce, broadcast: unchanged.
#pragma once

#include "comm/communicator.h"

namespace conclave {

class FakeCommunicator final : public Communicator {
 public:
  FakeCommunicator(std::string name, int rank, int size) : Communicator(std::move(name), rank, size) {}

  Pending all_gather(at::Tensor output, at::Tensor input) override;
  Pending reduce_scatter(at::Tensor output, at::Tensor input) override;
  Pending all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                     std::vector<int64_t> input_splits) override;
  Pending all_reduce(at::Tensor tensor, Reduction reduction) override;
  Pending broadcast(at::Tensor tensor, int root) override;
  void barrier() override {}
};

}  // namespace conclave

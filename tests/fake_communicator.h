// One rank of a large world without the others: nothing is sent, every call is ready at once, and shapes are checked as
// in earnest. For measuring memory and, inside a CountingCommunicator, traffic of layouts larger than the machine. The
// values are meaningless, though always finite if this rank's are:
//   all_gather: every part is this rank's; reduce_scatter: this rank's own part; all_to_all: this rank's rows, over and
//   over, or zeros if it has none; all_reduce, broadcast: unchanged.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>

#include "comm/communicator.h"
#include "comm/shapes.h"

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

inline Pending FakeCommunicator::all_gather(at::Tensor output, at::Tensor input) {
  check_parts("all_gather", output, input, size());
  const at::Tensor parts = output.view({size(), input.numel()});
  for (int peer = 0; peer < size(); ++peer)
    if (parts[peer].data_ptr() != input.data_ptr()) parts[peer].copy_(input.view(-1));
  return {};
}

inline Pending FakeCommunicator::reduce_scatter(at::Tensor output, at::Tensor input) {
  check_parts("reduce_scatter", input, output, size());
  const at::Tensor own = input.view({size(), output.numel()})[rank()];
  if (own.data_ptr() != output.data_ptr()) output.view(-1).copy_(own);
  return {};
}

inline Pending FakeCommunicator::all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                                            std::vector<int64_t> input_splits) {
  check_splits(output, input, output_splits, input_splits, rank(), size());
  if (input.size(0) == 0)
    output.zero_();
  else
    for (int64_t row = 0; row < output.size(0); row += input.size(0)) {
      const int64_t rows = std::min(input.size(0), output.size(0) - row);
      output.narrow(0, row, rows).copy_(input.narrow(0, 0, rows));
    }
  return {};
}

inline Pending FakeCommunicator::all_reduce(at::Tensor tensor, Reduction) {
  check_whole("all_reduce", tensor);
  return {};
}

inline Pending FakeCommunicator::broadcast(at::Tensor tensor, int root) {
  check_whole("broadcast", tensor);
  check_root(root, size());
  return {};
}

}  // namespace conclave

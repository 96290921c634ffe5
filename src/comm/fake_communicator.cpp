#include "comm/fake_communicator.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "comm/shapes.h"

namespace conclave {

Pending FakeCommunicator::all_gather(at::Tensor output, at::Tensor input) {
  check_parts("all_gather", output, input, size());
  const at::Tensor parts = output.view({size(), input.numel()});
  for (int peer = 0; peer < size(); ++peer)
    if (parts[peer].data_ptr() != input.data_ptr()) parts[peer].copy_(input.view(-1));
  return {};
}

Pending FakeCommunicator::reduce_scatter(at::Tensor output, at::Tensor input) {
  check_parts("reduce_scatter", input, output, size());
  const at::Tensor own = input.view({size(), output.numel()})[rank()];
  if (own.data_ptr() != output.data_ptr()) output.view(-1).copy_(own);
  return {};
}

Pending FakeCommunicator::all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
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

Pending FakeCommunicator::all_reduce(at::Tensor tensor, Reduction) {
  check_whole("all_reduce", tensor);
  return {};
}

Pending FakeCommunicator::broadcast(at::Tensor tensor, int root) {
  check_whole("broadcast", tensor);
  check_root(root, size());
  return {};
}

}  // namespace conclave

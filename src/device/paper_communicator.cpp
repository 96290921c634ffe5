#include "device/paper_communicator.h"

#include <ATen/ATen.h>

#include "comm/shapes.h"

namespace conclave {

Pending PaperCommunicator::start(const char* operation, CollectivePattern pattern, int64_t bytes,
                                 std::vector<at::Tensor> tensors) {
  device_.traffic().add(name(), operation, bytes);
  if (size() == 1) return {};
  const double end = device_.start(pattern, bytes, on_nodes_, name());
  return Pending([&clock = device_.clock(), end, held = std::move(tensors)] { clock.wait_until(end); });
}

at::Tensor PaperCommunicator::staged(int64_t bytes) const {
  return device_.machine().stages_sums ? at::empty({bytes}, at::device(at::kMeta).dtype(at::kByte)) : at::Tensor();
}

Pending PaperCommunicator::all_gather(at::Tensor output, at::Tensor input) {
  check_parts("all_gather", output, input, size());
  return start("all_gather", CollectivePattern::gather_or_scatter,
               bytes_to_all_others(static_cast<int64_t>(input.nbytes()), size()), {output, input});
}

Pending PaperCommunicator::reduce_scatter(at::Tensor output, at::Tensor input) {
  check_parts("reduce_scatter", input, output, size());
  const int64_t bytes = bytes_to_all_others(static_cast<int64_t>(output.nbytes()), size());
  return start("reduce_scatter", CollectivePattern::gather_or_scatter, bytes, {output, input, staged(bytes)});
}

Pending PaperCommunicator::all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                                      std::vector<int64_t> input_splits) {
  check_splits(output, input, output_splits, input_splits, rank(), size());
  return start("all_to_all", CollectivePattern::all_to_all, (input.size(0) - input_splits[rank()]) * row_bytes(input),
               {output, input});
}

Pending PaperCommunicator::all_reduce(at::Tensor tensor, Reduction) {
  check_whole("all_reduce", tensor);
  const int64_t count = tensor.numel(), item = static_cast<int64_t>(tensor.element_size());
  const int64_t own = all_reduce_in_one_go(count * item, size())
                          ? count
                          : part_begin(count, rank() + 1, size()) - part_begin(count, rank(), size());
  return start("all_reduce", CollectivePattern::all_reduce, all_reduce_bytes(count, item, rank(), size()),
               {tensor, staged((size() - 1) * own * item)});
}

Pending PaperCommunicator::broadcast(at::Tensor tensor, int root) {
  check_whole("broadcast", tensor);
  check_root(root, size());
  return start("broadcast", CollectivePattern::gather_or_scatter,
               rank() == root ? bytes_to_all_others(static_cast<int64_t>(tensor.nbytes()), size()) : 0, {tensor});
}

}  // namespace conclave

#include "checkpoint/tensor_comparison.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "base/error.h"
#include "checkpoint/disk_parts.h"
#include "checkpoint/hugging_face_reader.h"

namespace conclave {
namespace {

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0;
}

void add_block(TensorDifference& difference, const at::Tensor& first, const at::Tensor& second) {
  difference.elements += first.numel();
  if (same_bits(first, second)) return;
  const at::Tensor apart = (first.to(at::kDouble) - second.to(at::kDouble)).abs();
  difference.unequal += apart.ne(0).sum().item<int64_t>();  // NaN is unequal to 0
  const auto largest = apart.max().item<double>();          // NaN where any is
  difference.largest = std::isnan(largest) ? largest : std::max(difference.largest, largest);
  difference.mean += apart.sum().item<double>();  // the sum so far; divided when all is seen
}

TensorDifference compare(const FiledTensor& first, const FiledTensor& second, const BytesDone& done) {
  TensorDifference difference;
  const at::ScalarType types[2] = {scalar_type_of(first.dtype).value(), scalar_type_of(second.dtype).value()};
  const int64_t numel = checked_numel(first.shape).value();
  const int64_t per_block =
      block_bytes / static_cast<int64_t>(std::max(bits_of(first.dtype), bits_of(second.dtype)) / 8);
  const at::Tensor memory[2] = {at::empty({std::min(numel, per_block)}, at::TensorOptions(types[0])),
                                at::empty({std::min(numel, per_block)}, at::TensorOptions(types[1]))};
  for (int64_t begin = 0; begin < numel; begin += per_block) {
    const int64_t count = std::min(per_block, numel - begin);
    const at::Tensor blocks[2] = {memory[0].narrow(0, 0, count), memory[1].narrow(0, 0, count)};
    first.read(begin, blocks[0]);
    second.read(begin, blocks[1]);
    add_block(difference, blocks[0], blocks[1]);
    done(blocks[0].nbytes() + blocks[1].nbytes());
  }
  if (numel > 0) difference.mean /= static_cast<double>(numel);
  const bool equal = difference.unequal == 0 && first.dtype == second.dtype;
  difference.result = equal ? Comparison::equal : Comparison::differs;
  return difference;
}

void check_types(const FiledTensors& tensors) {
  for (const auto& [name, tensor] : tensors) {
    if (!scalar_type_of(tensor.dtype))
      user_error("tensor \"{}\" is {}, which cannot be compared.", name, name_of(tensor.dtype));
  }
}

}  // namespace

FiledTensors tensors_of(CheckpointReader& checkpoint) {
  FiledTensors tensors;
  for (const auto& entry : checkpoint.manifest().tensors) {
    const std::string& name = entry.first;
    const ManifestTensor& tensor = entry.second;
    tensors[name] = {tensor.dtype, tensor.shape, [&checkpoint, name, &tensor](int64_t begin, const at::Tensor& out) {
                       const TensorSlice slice{name, tensor.shape, begin, out};
                       checkpoint.load({&slice, 1});
                     }};
  }
  return tensors;
}

FiledTensors tensors_of(const HuggingFaceFiles& files) {
  FiledTensors tensors;
  for (const auto& [file, tensor] : files.all()) {
    tensors[tensor->name] = {
        tensor->dtype, tensor->shape,
        [file = file, name = tensor->name](int64_t begin, const at::Tensor& out) { file->read(name, begin, out); }};
  }
  return tensors;
}

FiledTensors tensors_of(CheckpointReader& checkpoint, std::span<const DiskNames> names, const HuggingFaceFiles& files) {
  FiledTensors tensors;
  for (const DiskNames& parameter : names) {
    const std::string name = state_tensor_name(kind_parameter, parameter.parameter);
    const auto found = checkpoint.manifest().tensors.find(name);
    if (found == checkpoint.manifest().tensors.end())
      user_error("checkpoint {} has no tensor \"{}\".", checkpoint.path().string(), name);
    const ManifestTensor& stored = found->second;
    int64_t part_begin = 0;
    for (const DiskTensor& part : form_of(parameter, files)) {
      tensors[part.name] = {stored.dtype, part.shape,
                            [&checkpoint, name, &stored, part_begin](int64_t begin, const at::Tensor& out) {
                              const TensorSlice slice{name, stored.shape, part_begin + begin, out};
                              checkpoint.load({&slice, 1});
                            }};
      part_begin += checked_numel(part.shape).value();
    }
  }
  return tensors;
}

std::vector<TensorDifference> compare(const FiledTensors& first, const FiledTensors& second, const BytesDone& done) {
  check_types(first);
  check_types(second);
  const at::NoGradGuard no_grad;
  std::vector<TensorDifference> differences;
  const auto describe = [](TensorDifference& difference, int side, const FiledTensor& tensor) {
    difference.dtypes[side] = tensor.dtype;
    difference.shapes[side] = tensor.shape;
  };
  for (const auto& [name, tensor] : first) {
    TensorDifference difference;
    const auto other = second.find(name);
    if (other == second.end()) {
      difference.result = Comparison::only_in_first;
    } else if (other->second.shape != tensor.shape) {
      difference.result = Comparison::reshaped;
    } else {
      difference = compare(tensor, other->second, done);
    }
    difference.name = name;
    describe(difference, 0, tensor);
    if (other != second.end()) describe(difference, 1, other->second);
    differences.push_back(std::move(difference));
  }
  for (const auto& [name, tensor] : second) {
    if (first.contains(name)) continue;
    TensorDifference difference;
    difference.name = name;
    difference.result = Comparison::only_in_second;
    describe(difference, 1, tensor);
    differences.push_back(std::move(difference));
  }
  std::sort(differences.begin(), differences.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return differences;
}

}  // namespace conclave

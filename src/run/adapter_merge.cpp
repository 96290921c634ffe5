#include "run/adapter_merge.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>

#include "checkpoint/safetensors_header.h"
#include "comm/local_communicator.h"
#include "families/family.h"

namespace conclave {
namespace {

constexpr int64_t block_elements = int64_t{1} << 22;

// Rows [begin, begin + count) of what an adapter adds to its matrix, of one expert if there are several.
at::Tensor rows_of_update(const at::Tensor& a_PM, const at::Tensor& b_NP, bool input_major, double scale, int64_t begin,
                          int64_t count) {
  const at::Tensor left = input_major ? a_PM.t() : b_NP, right = input_major ? b_NP.t() : a_PM;
  return at::mm(left.narrow(0, begin, count), right).mul_(scale);
}

class Merge {
 public:
  explicit Merge(StoredAdapter& adapter) : scale_(adapter.model().adapter->scale) {
    for (const AdapterTensor& tensor : adapter.tensors()) whole_[tensor.parameter] = adapter.read(tensor);
    for (const AdaptedPart& part : adapted_parts(adapter.model())) parts_[part.parameter].push_back(part);
  }

  // Rows of a parameter [N,M] or [E,N,M], counted over all experts, become those of the merged one.
  void apply(const DiskNames& names, int64_t first_row, at::Tensor rows_RM) const {
    if (const auto trained = whole_.find(names.parameter); trained != whole_.end())
      rows_RM.copy_(trained->second.view({-1, rows_RM.size(1)}).narrow(0, first_row, rows_RM.size(0)));
    const auto found = parts_.find(names.parameter);
    if (found == parts_.end()) return;
    for (const AdaptedPart& part : found->second) add(part, names.shape, first_row, rows_RM);
  }

 private:
  void add(const AdaptedPart& part, const std::vector<int64_t>& shape, int64_t first_row, at::Tensor rows_RM) const {
    const at::Tensor &a = whole_.at(part.a), &b = whole_.at(part.b);
    const bool of_experts = shape.size() == 3;
    const int64_t rows_of_matrix = of_experts ? shape[1] : shape[0];
    const int64_t rows = part.input_major ? rows_of_matrix : part.rows;
    const int64_t matrices = of_experts ? shape[0] : 1, end_row = first_row + rows_RM.size(0);
    for (int64_t matrix = first_row / rows_of_matrix; matrix < matrices && matrix * rows_of_matrix < end_row;
         ++matrix) {
      const int64_t part_begin = matrix * rows_of_matrix + part.first;
      const int64_t begin = std::max(first_row, part_begin), end = std::min(end_row, part_begin + rows);
      if (begin >= end) continue;
      rows_RM.narrow(0, begin - first_row, end - begin)
          .add_(rows_of_update(of_experts ? a[matrix] : a, of_experts ? b[matrix] : b, part.input_major, scale_,
                               begin - part_begin, end - begin));
    }
  }

  double scale_;
  std::map<std::string, at::Tensor> whole_;
  std::map<std::string, std::vector<AdaptedPart>> parts_;  // by the matrix
};

}  // namespace

void merge_adapter(StoredAdapter& adapter, const ReadParameter& read, const std::filesystem::path& to,
                   const HuggingFaceExportOptions& options, const BytesDone& done) {
  const std::vector<DiskNames> names = disk_names(adapter.model());
  const Merge merge(adapter);
  LocalCommunicator alone("world");
  HuggingFaceExport out(to, names, options, alone);
  for (const DiskNames& parameter : names) {
    const int64_t numel = checked_numel(parameter.shape).value(), columns = parameter.shape.back();
    const int64_t rows = numel / columns, at_once = std::max<int64_t>(block_elements / columns, 1);
    for (int64_t row = 0; row < rows; row += at_once) {
      const at::Tensor block = at::empty({std::min(at_once, rows - row), columns}, at::kFloat);
      const TensorSlice slice{parameter.parameter, parameter.shape, row * columns, block.view({-1})};
      read(slice);
      merge.apply(parameter, row, block);
      out.write(slice);
      done(static_cast<uint64_t>(block.numel()) * c10::elementSize(options.dtype));
    }
  }
  out.finish();
}

}  // namespace conclave

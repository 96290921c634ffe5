#include "run/dense_experts.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.h"

namespace conclave {
namespace {

constexpr int64_t block_elements = int64_t{1} << 20;  // of the dense matrix in memory beside the parameters

}  // namespace

DenseExperts::DenseExperts(const ModelConfig& model, const ModelConfig& dense, const HuggingFaceReader& reader)
    : reader_(reader),
      hidden_(model.hidden_size),
      units_(std::get<DenseMlpConfig>(dense.layers.front().mlp).intermediate),
      intermediate_(model.mixture()->intermediate),
      pieces_(units_ / intermediate_) {
  check_invariant(pieces_ * intermediate_ == units_, "an MLP of {} units is cut into experts of {}", units_,
                  intermediate_);
}

std::string DenseExperts::dense_name(const std::string& parameter) {
  constexpr std::string_view ours = ".experts.";
  std::string name = parameter;
  return name.replace(name.find(ours), ours.size(), ".mlp.");
}

void DenseExperts::fill_up(const std::string& dense, int64_t matrix, int64_t piece, int64_t begin,
                           const at::Tensor& out) const {
  const int64_t first_row = matrix * units_ + piece * intermediate_;
  reader_.load({dense, {2 * units_, hidden_}, first_row * hidden_ + begin, out});
}

// A piece has some columns of the dense matrix: whole rows of that are read, and cut.
void DenseExperts::fill_down(const std::string& dense, int64_t piece, int64_t begin, const at::Tensor& out) const {
  const std::vector<int64_t> shape = {hidden_, units_};
  if (pieces_ == 1) return reader_.load({dense, shape, begin, out});
  const int64_t end = begin + out.numel(), rows_in_memory = std::max<int64_t>(1, block_elements / units_);
  const at::Tensor memory = at::empty({rows_in_memory * units_}, at::kFloat);
  const int64_t end_row = (end + intermediate_ - 1) / intermediate_;
  for (int64_t row = begin / intermediate_; row < end_row; row += rows_in_memory) {
    const int64_t rows = std::min(rows_in_memory, end_row - row);
    const at::Tensor whole = memory.narrow(0, 0, rows * units_);
    reader_.load({dense, shape, row * units_, whole});
    const at::Tensor cut =
        whole.view({rows, units_}).narrow(1, piece * intermediate_, intermediate_) * static_cast<double>(pieces_);
    const int64_t from = std::max(begin, row * intermediate_), to = std::min(end, (row + rows) * intermediate_);
    out.narrow(0, from - begin, to - from).copy_(cut.reshape({-1}).narrow(0, from - row * intermediate_, to - from));
  }
}

void DenseExperts::fill(const TensorSlice& slice) const {
  const bool is_down = slice.name.ends_with(".down");
  const int64_t matrices = is_down ? 1 : 2, numel = hidden_ * intermediate_;
  const std::string dense = dense_name(slice.name);
  const int64_t end = slice.begin + slice.data.numel();
  for (int64_t matrix = slice.begin / numel; matrix * numel < end; ++matrix) {
    const int64_t from = std::max(slice.begin, matrix * numel), to = std::min(end, (matrix + 1) * numel);
    const at::Tensor out = slice.data.narrow(0, from - slice.begin, to - from);
    const int64_t piece = matrix / matrices % pieces_;
    if (is_down)
      fill_down(dense, piece, from - matrix * numel, out);
    else
      fill_up(dense, matrix % matrices, piece, from - matrix * numel, out);
  }
}

}  // namespace conclave

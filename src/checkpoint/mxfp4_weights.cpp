// Weights in MXFP4, as gpt-oss is published.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <array>
#include <bit>
#include <span>

#include "base/error.h"
#include "checkpoint/quantized_tensor.h"

namespace conclave {
namespace {

constexpr int64_t group = 32, group_bytes = 16;  // numbers of one scale
constexpr std::array<float, 16> number_of_code = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                                  -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
constexpr uint8_t no_number = 255;

// 2^(exponent - 127), also where that is subnormal.
float power_of(uint8_t exponent) {
  return std::bit_cast<float>(exponent == 0 ? uint32_t{1} << 22 : static_cast<uint32_t>(exponent) << 23);
}

// A tensor [E,M,N], stored as rows [E,N] of M numbers.
class Mxfp4Blocks final : public QuantizedTensor {
 public:
  Mxfp4Blocks(HuggingFaceFiles::Place blocks, HuggingFaceFiles::Place scales)
      : QuantizedTensor({blocks.tensor->name, scales.tensor->name}),
        blocks_(blocks),
        scales_(scales),
        stored_rows_(blocks.tensor->shape[1]),
        groups_(blocks.tensor->shape[2]) {}

  void read(int64_t begin, const at::Tensor& out) const override {
    const at::NoGradGuard no_grad;
    const at::Tensor host = out.is_cpu() ? out.view(-1) : at::empty({out.numel()}, at::kFloat);
    const int64_t matrix = groups_ * group * stored_rows_, end = begin + out.numel();
    for (int64_t expert = begin / matrix; expert * matrix < end; ++expert)
      read_expert(expert, begin - expert * matrix, {host.data_ptr<float>(), static_cast<size_t>(host.numel())});
    if (!out.is_cpu()) out.view(-1).copy_(host);
  }

 private:
  // Fills what of `out`, elements of the expert from `begin` (which may be below 0), is the expert's.
  void read_expert(int64_t expert, int64_t begin, std::span<float> out) const {
    const int64_t row_bytes = groups_ * group_bytes;
    const int64_t most = std::clamp<int64_t>(block_bytes / row_bytes / lines * lines, lines, stored_rows_ + lines);
    const at::Tensor codes = at::empty({most, row_bytes}, at::kByte), exponents = at::empty({most, groups_}, at::kByte);
    for (int64_t first = 0; first < stored_rows_; first += most) {
      const int64_t rows = std::min(most, stored_rows_ - first), row = expert * stored_rows_ + first;
      blocks_.file->read(blocks_.tensor->name, row * row_bytes, codes.narrow(0, 0, rows));
      scales_.file->read(scales_.tensor->name, row * groups_, exponents.narrow(0, 0, rows));
      check_exponents(row, {exponents.const_data_ptr<uint8_t>(), static_cast<size_t>(rows * groups_)});
      for (int64_t some = 0; some < rows; some += lines)
        write_columns(out, begin, first + some, std::min(lines, rows - some),
                      codes.const_data_ptr<uint8_t>() + some * row_bytes,
                      exponents.const_data_ptr<uint8_t>() + some * groups_);
    }
  }

  void check_exponents(int64_t row, std::span<const uint8_t> exponents) const {
    const auto wrong = std::find(exponents.begin(), exponents.end(), no_number);
    if (wrong == exponents.end()) return;
    user_error("tensor \"{}\" in {} has a scale at place {} that is not a number. The file is damaged: get it anew.",
               scales_.tensor->name, scales_.file->file().path().string(), row * groups_ + (wrong - exponents.begin()));
  }

  // Stored rows are columns of the tensor: some of them side by side, so that a cache line is written at once.
  static constexpr int64_t lines = 16;
  void write_columns(std::span<float> out, int64_t begin, int64_t column, int64_t columns, const uint8_t* codes,
                     const uint8_t* exponents) const {
    const auto end = begin + static_cast<int64_t>(out.size());
    const int64_t first_row = std::max<int64_t>(begin, 0) / stored_rows_;
    const int64_t end_row = std::min(groups_ * group, (end + stored_rows_ - 1) / stored_rows_);
    std::array<float, lines> power{};
    int64_t power_of_group = -1;
    for (int64_t row = first_row; row < end_row; ++row) {
      if (row / group != power_of_group) {
        power_of_group = row / group;
        for (int64_t i = 0; i < columns; ++i) power[i] = power_of(exponents[i * groups_ + power_of_group]);
      }
      const int64_t place = row * stored_rows_ + column;
      const int64_t from = std::max<int64_t>(0, begin - place), to = std::min(columns, end - place);
      for (int64_t i = from; i < to; ++i) {
        const uint8_t pair = codes[i * groups_ * group_bytes + row / 2];
        out[place + i - begin] = number_of_code[row % 2 == 0 ? pair & 15 : pair >> 4] * power[i];
      }
    }
  }

  HuggingFaceFiles::Place blocks_, scales_;
  int64_t stored_rows_, groups_;
};

}  // namespace

std::unique_ptr<QuantizedTensor> find_mxfp4(const HuggingFaceFiles& files, const DiskTensor& tensor) {
  const HuggingFaceFiles::Place blocks = files.find(tensor.name + "_blocks"),
                                scales = files.find(tensor.name + "_scales");
  if (blocks.tensor == nullptr || files.find(tensor.name).tensor != nullptr) return nullptr;
  const std::string file = blocks.file->file().path().string();
  if (scales.tensor == nullptr)
    user_error("{} has tensor \"{}_blocks\", but its scales \"{}_scales\" are not there. Get the model anew.", file,
               tensor.name, tensor.name);
  if (tensor.shape.size() != 3 || tensor.shape[1] % group != 0)
    user_error(
        "{} has tensor \"{}_blocks\", but the model's configuration makes \"{}\" {}, whose rows are no blocks of {}.",
        file, tensor.name, tensor.name, text_of(tensor.shape), group);
  const std::vector<int64_t> scale_shape = {tensor.shape[0], tensor.shape[2], tensor.shape[1] / group};
  std::vector<int64_t> block_shape = scale_shape;
  block_shape.push_back(group_bytes);
  const auto check = [&](const HuggingFaceFiles::Place& place, const std::vector<int64_t>& shape) {
    if (place.tensor->shape == shape && place.tensor->dtype == StoredDtype::U8) return;
    user_error("tensor \"{}\" in {} is {} of shape {}, but the model's configuration makes it U8 of shape {}.",
               place.tensor->name, place.file->file().path().string(), name_of(place.tensor->dtype),
               text_of(place.tensor->shape), text_of(shape));
  };
  check(blocks, block_shape);
  check(scales, scale_shape);
  return std::make_unique<Mxfp4Blocks>(blocks, scales);
}

}  // namespace conclave

// Weights in fp8 with a scale for each square, as DeepSeek-V3 is published.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "checkpoint/quantized_tensor.h"

namespace conclave {
namespace {

constexpr int64_t side = 128;  // of a square

int64_t squares(int64_t size) {
  return (size + side - 1) / side;
}

std::string scales_of(const std::string& name) {
  return name + "_scale_inv";
}

bool any_has_scales(const HuggingFaceFiles& files) {
  for (const auto& [file, tensor] : files.all())
    if (tensor->name.ends_with("_scale_inv")) return true;
  return false;
}

// Exponents of two, plus 127.
bool are_exponents(StoredDtype dtype) {
  return dtype == StoredDtype::U8 || dtype == StoredDtype::F8_E8M0;
}

class Fp8Squares final : public QuantizedTensor {
 public:
  Fp8Squares(HuggingFaceFiles::Place weight, HuggingFaceFiles::Place scale)
      : QuantizedTensor({weight.tensor->name, scale.tensor->name}), weight_(weight), scale_(scale) {
    const std::vector<int64_t>& shape = weight.tensor->shape;
    rows_ = shape[shape.size() - 2];
    columns_ = shape.back();
  }

  void read(int64_t begin, const at::Tensor& out) const override {
    const at::NoGradGuard no_grad;
    const at::Tensor flat = out.view(-1);
    const int64_t most = std::min<int64_t>(flat.numel(), block_bytes / static_cast<int64_t>(sizeof(float)));
    const at::Tensor memory = out.is_cpu() ? at::Tensor() : at::empty({most}, at::kFloat);
    for (int64_t done = 0; done < flat.numel(); done += most) {
      const int64_t count = std::min(most, flat.numel() - done);
      const at::Tensor to = flat.narrow(0, done, count), block = out.is_cpu() ? to : memory.narrow(0, 0, count);
      weight_.file->read(weight_.tensor->name, begin + done, block);
      scale_block(begin + done, block);
      if (!out.is_cpu()) to.copy_(block);
    }
  }

 private:
  // The row of scales that row `row` of all matrices, one behind the other, has.
  int64_t scale_row_of(int64_t row) const { return row / rows_ * squares(rows_) + row % rows_ / side; }

  void scale_block(int64_t begin, const at::Tensor& block) const {
    auto* value = block.data_ptr<float>();
    const int64_t end = begin + block.numel(), across = squares(columns_);
    const int64_t first_scale = scale_row_of(begin / columns_);
    const at::Tensor scales = read_scales(first_scale, scale_row_of((end - 1) / columns_) + 1);
    for (int64_t row = begin / columns_; row * columns_ < end; ++row) {
      const float* scale = scales.const_data_ptr<float>() + (scale_row_of(row) - first_scale) * across;
      const int64_t from = std::max(begin - row * columns_, int64_t{0}), to = std::min(columns_, end - row * columns_);
      float* of_row = value + (row * columns_ - begin);
      for (int64_t left = from / side * side; left < to; left += side)
        for (int64_t column = std::max(left, from); column < std::min(left + side, to); ++column)
          of_row[column] *= scale[left / side];
    }
  }

  at::Tensor read_scales(int64_t first_row, int64_t end_row) const {
    const int64_t across = squares(columns_);
    const at::Tensor stored =
        at::empty({end_row - first_row, across}, at::TensorOptions(*scalar_type_of(scale_.tensor->dtype)));
    scale_.file->read(scale_.tensor->name, first_row * across, stored);
    const at::Tensor scales =
        scale_.tensor->dtype == StoredDtype::U8 ? at::exp2(stored.to(at::kFloat) - 127.0f) : stored.to(at::kFloat);
    const at::Tensor is_sound = at::isfinite(scales).logical_and(scales >= 0);
    if (!is_sound.all().item<bool>()) {
      const auto worst = is_sound.view(-1).logical_not().to(at::kInt).argmax().item<int64_t>();
      user_error(
          "tensor \"{}\" in {} has the scale {} at place {}, but scales are numbers from 0 up. The file is damaged: "
          "get it "
          "anew.",
          scale_.tensor->name, scale_.file->file().path().string(), scales.view(-1)[worst].item<float>(),
          first_row * across + worst);
    }
    return scales;
  }

  HuggingFaceFiles::Place weight_, scale_;
  int64_t rows_, columns_;
};

}  // namespace

std::unique_ptr<QuantizedTensor> find_fp8(const HuggingFaceFiles& files, const DiskTensor& tensor) {
  const HuggingFaceFiles::Place weight = files.find(tensor.name), scale = files.find(scales_of(tensor.name));
  if (weight.tensor == nullptr) return nullptr;
  const std::string file = weight.file->file().path().string();
  if (scale.tensor == nullptr) {
    if (weight.tensor->dtype == StoredDtype::F8_E4M3 && any_has_scales(files))
      user_error(
          "tensor \"{}\" in {} is stored as F8_E4M3, but its scales \"{}\", which such weights have here, are not "
          "there. Get the model anew.",
          tensor.name, file, scales_of(tensor.name));
    return nullptr;
  }
  if (weight.tensor->dtype != StoredDtype::F8_E4M3)
    user_error("tensor \"{}\" in {} is stored as {}, but \"{}\" is beside it: weights with scales are F8_E4M3.",
               tensor.name, file, name_of(weight.tensor->dtype), scales_of(tensor.name));
  std::vector<int64_t> needed = weight.tensor->shape;
  if (needed.size() < 2)
    user_error("tensor \"{}\" in {} has scales for squares, but shape {}.", tensor.name, file, text_of(needed));
  needed[needed.size() - 2] = squares(needed[needed.size() - 2]);
  needed.back() = squares(needed.back());
  if (scale.tensor->shape != needed)
    user_error("tensor \"{}\" in {} has shape {}, but the {} x {} squares of \"{}\" {} need scales of shape {}.",
               scale.tensor->name, scale.file->file().path().string(), text_of(scale.tensor->shape), side, side,
               tensor.name, text_of(weight.tensor->shape), text_of(needed));
  if (!converts_to_fp32(scale.tensor->dtype) && !are_exponents(scale.tensor->dtype))
    user_error("tensor \"{}\" in {} is stored as {}, but scales are floats or exponents of two.", scale.tensor->name,
               scale.file->file().path().string(), name_of(scale.tensor->dtype));
  return std::make_unique<Fp8Squares>(weight, scale);
}

}  // namespace conclave

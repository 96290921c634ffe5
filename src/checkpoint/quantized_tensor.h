// Weights that are stored in few bits beside scales, and read as what they stand for. Two forms are known, to the bits
// of Transformers 5's own readers:
//
//   fp8 in squares (DeepSeek-V3)  NAME [..,N,M] in F8_E4M3 beside NAME_scale_inv [..,ceil(N/128),ceil(M/128)]: an
//   element
//                                 times the scale of its 128 x 128 square
//   MXFP4 (gpt-oss)               NAME [E,M,N] is stored as NAME_blocks [E,N,M/32,16], two numbers of 4 bits to a byte,
//   the
//                                 lower one first, beside NAME_scales [E,N,M/32], the exponents of two (plus 127) of
//                                 32 numbers each (Open Compute Project, "Microscaling Formats")
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/hugging_face_files.h"
#include "checkpoint/tensor_slice.h"

namespace conclave {

class QuantizedTensor {
 public:
  virtual ~QuantizedTensor() = default;
  QuantizedTensor(const QuantizedTensor&) = delete;
  QuantizedTensor& operator=(const QuantizedTensor&) = delete;

  // Fills `out` (fp32, contiguous, any device) with elements [begin, begin + out.numel()) of the row-major flattened
  // tensor, reading only what they need, in bounded blocks. UserError naming the tensor: a scale that is no number.
  virtual void read(int64_t begin, const at::Tensor& out) const = 0;

  // The tensors of the files that it is made of.
  const std::vector<std::string>& stored() const { return stored_; }

 protected:
  explicit QuantizedTensor(std::vector<std::string> stored) : stored_(std::move(stored)) {}

 private:
  std::vector<std::string> stored_;
};

// Null: the tensor is not stored so. UserError naming the tensor and its file: a scale tensor that is not there while
// other weights have theirs, or whose shape or type does not fit. `files` outlives it.
std::unique_ptr<QuantizedTensor> find_quantized(const HuggingFaceFiles& files, const DiskTensor& tensor);

// Whether the files hold the tensor, in whatever form.
bool is_stored(const HuggingFaceFiles& files, const std::string& name);

// Each form alone.
std::unique_ptr<QuantizedTensor> find_fp8(const HuggingFaceFiles& files, const DiskTensor& tensor);
std::unique_ptr<QuantizedTensor> find_mxfp4(const HuggingFaceFiles& files, const DiskTensor& tensor);

}  // namespace conclave

// Experts that are cut from the MLPs of a dense model, as they lie in its files. An MLP of D units gives P = D / I
// pieces of I neighbouring units; expert e is piece e % P of its layer's MLP. With P = 1 it is a copy. The down
// projection of a piece is multiplied by P: where a token's experts are all pieces of some copies, weighed alike within
// a copy by weights that sum to 1, they compute together what the MLP does.
#pragma once

#include "checkpoint/hugging_face_reader.h"
#include "config/model_config.h"

namespace conclave {

class DenseExperts {
 public:
  // `reader`: of the dense model's own parameters; outlives it. The model's experts must be checked to fit.
  DenseExperts(const ModelConfig& model, const ModelConfig& dense, const HuggingFaceReader& reader);

  int64_t pieces() const { return pieces_; }
  // Of a parameter of experts: that of the dense model.
  static std::string dense_name(const std::string& parameter);
  // Whether a parameter is a stack of experts' matrices.
  static bool is_of_experts(const std::string& parameter) { return parameter.find(".experts.") != std::string::npos; }

  // Fills a slice (fp32) of a stack of experts' matrices [E,2I,H] or [E,H,I]: reads what it needs, in bounded blocks.
  void fill(const TensorSlice& slice) const;

 private:
  // Elements [begin, begin + out.numel()) of one matrix [I,H] or [H,I] of a piece.
  void fill_up(const std::string& dense, int64_t matrix, int64_t piece, int64_t begin, const at::Tensor& out) const;
  void fill_down(const std::string& dense, int64_t piece, int64_t begin, const at::Tensor& out) const;

  const HuggingFaceReader& reader_;
  int64_t hidden_, units_, intermediate_, pieces_;  // units: of the dense MLP
};

}  // namespace conclave

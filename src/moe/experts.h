// The experts of one rank over rows in expert order, on the fused layout of Transformers 5: gate_up [L,2I,H] with the
// gate half first, down [L,H,I]. Each expert is one pass (product, activation, product) over its rows in chunks, so
// that temporaries are a chunk's, however many rows are routed to one expert.
#pragma once

#include <optional>
#include <vector>

#include "base/gradient.h"
#include "kernels/clamped_swiglu.h"
#include "kernels/dropout.h"
#include "moe/dispatcher.h"

namespace conclave {

// How an expert's matrices lie: by rows of outputs, gate_up [2I,H] and down [H,I]; or by rows of inputs, as gpt-oss has
// them, gate_up [H,2I] and down [I,H]. The names' suffixes are those of the first.
enum class ExpertMatrices { output_major, input_major };

struct ExpertForm {
  ExpertMatrices matrices = ExpertMatrices::output_major;
  std::optional<ClampedSwiglu> clamped = {};  // the activation is that; else SwiGLU (kernels/swiglu.h)
};

// The two matrices of an adapter (kernels/low_rank.h) beside one of each expert's, or beside some rows of it: A [P,M]
// and B [N,P], whichever way the expert's own matrix lies.
struct ExpertLowRank {
  at::Tensor a_LPM;
  at::Tensor b_LNP;
  at::Tensor guest_a_GPM = {};
  at::Tensor guest_b_GNP = {};
  int64_t first = 0;  // of the outputs
  double scale = 1;
  std::optional<Dropout> dropout = {};  // of what A reads; rows are those of a micro-batch in their order
};

// On a CPU whole experts may be fp32 where rows are bf16 (kernels/linear.h rounds them); guests are of the rows' dtype.
struct ExpertWeights {
  at::Tensor gate_up_LJH;
  at::Tensor down_LHI;
  // Experts of other ranks (moe/spill_plan.h): their rows come behind those of the rank's own. Undefined: none.
  at::Tensor guest_gate_up_GJH = {};
  at::Tensor guest_down_GHI = {};
  ExpertForm form = {};
  // Undefined: none.
  at::Tensor gate_up_bias_LJ = {};
  at::Tensor down_bias_LH = {};
  at::Tensor guest_gate_up_bias_GJ = {};
  at::Tensor guest_down_bias_GH = {};
  std::vector<ExpertLowRank> gate_up_low_rank = {};
  std::vector<ExpertLowRank> down_low_rank = {};

  // Of a rank's own experts, those that there are, each with the place of its guests'.
  struct OwnAndGuests {
    at::Tensor* own;
    at::Tensor* guests;
  };
  std::vector<OwnAndGuests> parts();

  bool is_input_major() const { return form.matrices == ExpertMatrices::input_major; }
  int64_t experts() const { return down_LHI.size(0); }
  int64_t hidden() const { return down_LHI.size(is_input_major() ? 2 : 1); }
  int64_t intermediate() const { return down_LHI.size(is_input_major() ? 1 : 2); }
};

struct ExpertLowRankGradients {
  Gradient a_LPM;
  Gradient b_LNP;
  Gradient guest_a_GPM = {};
  Gradient guest_b_GNP = {};
};

// Those of biases are there where the biases are; of what is frozen there is no tensor.
struct ExpertGradients {
  Gradient gate_up_LJH;
  Gradient down_LHI;
  Gradient guest_gate_up_GJH = {};
  Gradient guest_down_GHI = {};
  Gradient gate_up_bias_LJ = {};
  Gradient down_bias_LH = {};
  Gradient guest_gate_up_bias_GJ = {};
  Gradient guest_down_bias_GH = {};
  std::vector<ExpertLowRankGradients> gate_up_low_rank = {};
  std::vector<ExpertLowRankGradients> down_low_rank = {};

  // Of a rank's own experts, those that are wanted, each with the place of its guests'.
  struct OwnAndGuests {
    Gradient* own;
    Gradient* guests;
  };
  std::vector<OwnAndGuests> wanted();
  // From now on more is added to what is there.
  void accumulate() {
    for (const OwnAndGuests& gradient : wanted()) gradient.own->accumulate = true;
  }
};

struct ExpertOutput {
  at::Tensor row_RH;      // weighted by the routing weight
  at::Tensor gate_up_RJ;  // the pre-activation: all that backward needs besides the input rows; undefined when not kept
};

// The widest of all tensors of a layer: kept for backward, or a chunk's at a time is computed there once more, to the
// same bits.
enum class PreActivation { kept, repeated };

ExpertOutput experts_forward(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert,
                             const ExpertWeights& weights, PreActivation pre_activation);

// Gradients with respect to rows and routing weights; those of the weights are written, or added to what is there as
// `gradients` says. Consumes `rows.row_RH` and `gate_up` (undefined when it was not kept): their memory is reused for
// the results.
ExpertRows experts_backward(const at::Tensor& grad_RH, ExpertRows rows, at::Tensor gate_up_RJ,
                            const std::vector<int64_t>& rows_per_expert, const ExpertWeights& weights,
                            ExpertGradients& gradients);

}  // namespace conclave

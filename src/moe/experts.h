// The SwiGLU experts of one rank over rows in expert order, on the fused layout of Transformers 5: gate_up [L,2I,H]
// with the gate half first, down [L,H,I]. Each expert is one pass (product, activation, product) over its rows in
// chunks, so that temporaries are a chunk's, however many rows are routed to one expert.
#pragma once

#include <vector>

#include "base/expert_chunk.h"
#include "base/gradient.h"
#include "moe/dispatcher.h"

namespace conclave {

// On a CPU whole experts may be fp32 where rows are bf16 (kernels/linear.h rounds them); guests are of the rows' dtype.
struct ExpertWeights {
  at::Tensor gate_up_LJH;
  at::Tensor down_LHI;
  // Experts of other ranks (moe/spill_plan.h): their rows come behind those of the rank's own. Undefined: none.
  at::Tensor guest_gate_up_GJH = {};
  at::Tensor guest_down_GHI = {};
};

struct ExpertGradients {
  Gradient gate_up_LJH;
  Gradient down_LHI;
  Gradient guest_gate_up_GJH = {};
  Gradient guest_down_GHI = {};
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

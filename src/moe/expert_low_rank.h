// What adapters add to the products of the experts with one of their matrices.
#pragma once

#include <vector>

#include "kernels/low_rank.h"
#include "moe/expert_chunks.h"

namespace conclave {

// Over the rows of one chunk. Its members that are there come in this order: the gradients of A and B read what the
// input's gradient may be written over.
class ChunkLowRank {
 public:
  ChunkLowRank(const std::vector<ExpertLowRank>& adapters, const ExpertChunk& chunk)
      : adapters_(adapters), chunk_(chunk), grad_inner_RP_(adapters.size()) {}

  // y [R,N] += scale * (x [R,M] A^T) B^T.
  void forward_add(const at::Tensor& y_RN, const at::Tensor& x_RM) const;
  // The gradients of A and B.
  void backward_weights(const std::vector<ExpertLowRankGradients>& gradients, const at::Tensor& grad_y_RN,
                        const at::Tensor& x_RM);
  // grad_x [R,M] += what arrives through A.
  void backward_input_add(const at::Tensor& grad_x_RM, const at::Tensor& grad_y_RN);

 private:
  LowRank matrices(const ExpertLowRank& adapter) const;
  at::Tensor outputs(const ExpertLowRank& adapter, const at::Tensor& y_RN) const;
  // What A reads.
  at::Tensor input(const ExpertLowRank& adapter, const at::Tensor& x_RM) const;
  const at::Tensor& inner_gradient(size_t adapter, const at::Tensor& grad_y_RN);

  const std::vector<ExpertLowRank>& adapters_;
  const ExpertChunk& chunk_;
  std::vector<at::Tensor> grad_inner_RP_;  // once they were needed
};

// Of an expert without rows.
void write_zeros(const std::vector<ExpertLowRankGradients>& gradients, const ExpertChunk& chunk);

}  // namespace conclave

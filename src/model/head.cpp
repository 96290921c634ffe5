#include "model/head.h"

#include <algorithm>

#include "kernels/cross_entropy.h"
#include "kernels/linear.h"
#include "kernels/rms_norm.h"
#include "kernels/values.h"
#include "memory/memory_category.h"
#include "model/declarations.h"

namespace conclave {
namespace {

// Sums of losses by part, where the losses are: they are waited for once.
class PartSums {
 public:
  explicit PartSums(const std::vector<int64_t>& part_ends) : ends_(part_ends), sums_(part_ends.size()) {}

  // `loss(first, rows)` of the rows that each part has in the chunk; of a chunk without rows it is asked once, too.
  template <class Loss>
  void add_chunk(int64_t begin, int64_t count, Loss loss) {
    int64_t first = begin;
    do {
      while (part_ + 1 < ends_.size() && ends_[part_] <= first) ++part_;
      const int64_t rows = std::min(ends_[part_], begin + count) - first;
      const at::Tensor sum = loss(first, rows);
      sums_[part_] = sums_[part_].defined() ? sums_[part_] + sum : sum;
      first += rows;
    } while (first < begin + count);
  }
  std::vector<double> values() const {
    std::vector<double> values;
    for (const at::Tensor& sum : sums_) values.push_back(sum.defined() ? value_of(sum) : 0.0);
    return values;
  }

 private:
  const std::vector<int64_t>& ends_;
  std::vector<at::Tensor> sums_;
  size_t part_ = 0;  // of the row that comes next
};

constexpr const char* norm_name = "norm";
constexpr const char* projection_name = "lm_head";

}  // namespace

void Head::declare(const ModelConfig& config, UnitDeclaration& unit) {
  unit.parameters.push_back(norm_weight(norm_name, config.hidden_size));
  if (!config.tie_word_embeddings)
    unit.parameters.push_back(matrix(config, projection_name, {config.vocab_size, config.hidden_size}));
}

Head::Head(const ModelConfig& config, const UnitDeclaration& unit, const Embedding& embedding, int64_t chunk_tokens)
    : norm_H_(unit, norm_name),
      projection_VH_(config.tie_word_embeddings ? embedding.table() : ParameterSlot(unit, projection_name)),
      tied_(config.tie_word_embeddings),
      eps_(config.rms_norm_eps),
      chunk_tokens_(chunk_tokens) {}

HeadWeights Head::weights(const UnitWeights& head, const UnitWeights& embedding) const {
  return {norm_H_(head), projection_VH_(tied_ ? embedding : head)};
}

HeadGradients Head::gradients(UnitGradients head, UnitGradients embedding) const {
  return {norm_H_(head), projection_VH_(tied_ ? embedding : head)};
}

at::Tensor Head::project(const at::Tensor& normed_CH, const at::Tensor& projection_VH) const {
  MemoryScope scope(MemoryCategory::logits);
  at::Tensor logits_CV = at::empty({normed_CH.size(0), projection_VH.size(0)}, normed_CH.options());
  linear_forward(logits_CV, normed_CH, projection_VH);
  return logits_CV;
}

std::vector<double> Head::losses_with_gradient_(at::Tensor hidden_TH, const Targets& targets, double scale,
                                                const HeadWeights& weights, HeadGradients gradients) const {
  PartSums sums(targets.part_ends);
  at::Tensor& grad_norm_H = gradients.norm_H.zeroed();
  // One chunk at least, so that a rank without tokens still writes its gradients.
  int64_t begin = 0;
  do {
    const int64_t count = std::min(chunk_tokens_, hidden_TH.size(0) - begin);
    at::Tensor hidden_CH = hidden_TH.narrow(0, begin, count);
    at::Tensor normed_CH = at::empty_like(hidden_CH);
    at::Tensor rstd_C = at::empty({count}, hidden_TH.options().dtype(at::kFloat));
    rms_norm_forward(normed_CH, rstd_C, hidden_CH, weights.norm_H, eps_);
    at::Tensor logits_CV = project(normed_CH, weights.projection_VH);
    sums.add_chunk(begin, count, [&](int64_t first, int64_t rows) {
      return cross_entropy_sum_with_gradient_(logits_CV.narrow(0, first - begin, rows),
                                              targets.target_T.narrow(0, first, rows), scale);
    });
    if (gradients.projection_VH.is_wanted())
      linear_backward_weight(gradients.projection_VH.tensor, logits_CV, normed_CH, gradients.projection_VH.accumulate);
    gradients.projection_VH.accumulate = true;
    linear_backward_input(normed_CH, logits_CV, weights.projection_VH);
    logits_CV.reset();
    at::Tensor grad_CH = at::zeros_like(hidden_CH);
    rms_norm_backward(grad_CH, grad_norm_H, normed_CH, hidden_CH, rstd_C, weights.norm_H);
    hidden_CH.copy_(grad_CH);
    begin += count;
  } while (begin < hidden_TH.size(0));
  return sums.values();
}

std::vector<double> Head::losses(const at::Tensor& hidden_TH, const Targets& targets,
                                 const HeadWeights& weights) const {
  PartSums sums(targets.part_ends);
  for (int64_t begin = 0; begin < hidden_TH.size(0); begin += chunk_tokens_) {
    const int64_t count = std::min(chunk_tokens_, hidden_TH.size(0) - begin);
    const at::Tensor hidden_CH = hidden_TH.narrow(0, begin, count);
    at::Tensor normed_CH = at::empty_like(hidden_CH);
    at::Tensor rstd_C = at::empty({count}, hidden_TH.options().dtype(at::kFloat));
    rms_norm_forward(normed_CH, rstd_C, hidden_CH, weights.norm_H, eps_);
    const at::Tensor logits_CV = project(normed_CH, weights.projection_VH);
    sums.add_chunk(begin, count, [&](int64_t first, int64_t rows) {
      return cross_entropy_sum(logits_CV.narrow(0, first - begin, rows), targets.target_T.narrow(0, first, rows));
    });
  }
  return sums.values();
}

at::Tensor Head::logits(const at::Tensor& hidden_TH, const HeadWeights& weights) const {
  at::Tensor normed_TH = at::empty_like(hidden_TH);
  at::Tensor rstd_T = at::empty({hidden_TH.size(0)}, hidden_TH.options().dtype(at::kFloat));
  rms_norm_forward(normed_TH, rstd_T, hidden_TH, weights.norm_H, eps_);
  return project(normed_TH, weights.projection_VH).to(at::kFloat);
}

}  // namespace conclave

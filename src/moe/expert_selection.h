// How the tokens of a layer choose their experts. A balancing rule that works through the choice (and not through a
// loss) is an ExpertSelection of its own: the weights always come from the router's scores, only who is chosen differs.
//
// Every rule gives the same choices whatever the layout: what it needs to know of other ranks' tokens it learns from
// all of them, and what it needs to know of a token's place it takes from the data, not from the rank.
#pragma once

#include <memory>
#include <span>

#include "comm/communicator.h"
#include "kernels/router.h"

namespace conclave {

// Which tokens of the data's stream a rank's rows are: row t is token t % sequence of sample sample_of_B[t / sequence].
struct TokenNumbers {
  std::span<const int64_t> sample_of_B;
  int64_t sequence = 0;
};

class ExpertSelection {
 public:
  virtual ~ExpertSelection() = default;

  const RouterOptions& options() const { return options_; }

  // The routing of a layer's tokens in training; logits [T,E]. May be collective over the world: all ranks call it for
  // the same layers in the same order, also with no token. Not called again when a layer is recomputed: choices are
  // kept.
  virtual Routing route_in_training(int64_t layer, const at::Tensor& logits_TE, const TokenNumbers& tokens) = 0;
  // The same in evaluation: never collective; plain top-k, with the selection bias if there is one.
  virtual Routing route_in_evaluation(int64_t layer, const at::Tensor& logits_TE) const;

  // After a step that changed the weights: count [L,E] double, CPU, the choices that fell on each expert over the step
  // and all ranks.
  virtual void finish_step(const at::Tensor& count_LE) {}
  // What the rule carries from step to step, [L,E] fp32, for checkpoints; undefined: nothing.
  virtual at::Tensor state_LE() const { return {}; }
  // Takes a state back. Only of a rule that has one.
  virtual void restore(const at::Tensor& state_LE);

  // Added to the scores for choosing, not for weighing: [L,E] fp32; undefined: none.
  const at::Tensor& bias_LE() const { return bias_LE_; }
  // One that is part of the model, and kept with its parameters, whatever the rule does to it.
  void use_bias_of_model(at::Tensor bias_LE);

 protected:
  explicit ExpertSelection(const RouterOptions& options) : options_(options) {}

  at::Tensor bias_of(int64_t layer) const { return bias_LE_.defined() ? bias_LE_[layer] : at::Tensor(); }
  bool bias_is_of_model() const { return bias_is_of_model_; }

  at::Tensor bias_LE_;

 private:
  RouterOptions options_;
  bool bias_is_of_model_ = false;
};

// The k experts with the highest scores, or with the highest scores and bias where the model has one.
class TopKSelection final : public ExpertSelection {
 public:
  explicit TopKSelection(const RouterOptions& options) : ExpertSelection(options) {}
  Routing route_in_training(int64_t layer, const at::Tensor& logits_TE, const TokenNumbers& tokens) override;
};

// Exactly even, whatever the scores say: choice k of token n (counted through the stream) falls on expert (n K + k) mod
// E. For benchmarks and planning: it trains experts on tokens that the router did not send them.
class RoundRobinSelection final : public ExpertSelection {
 public:
  explicit RoundRobinSelection(const RouterOptions& options) : ExpertSelection(options) {}
  Routing route_in_training(int64_t layer, const at::Tensor& logits_TE, const TokenNumbers& tokens) override;
};

// The k highest of score + bias, where the bias of an overloaded expert falls and that of an idle one rises by `rate`
// after each step: b_e += rate * sign(mean load - load_e) (Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy
// for Mixture-of-Experts", arXiv 2408.15664, algorithm 1). The bias belongs to the model: evaluation uses it too.
class BiasedSelection final : public ExpertSelection {
 public:
  BiasedSelection(const RouterOptions& options, double rate, int64_t layers, int64_t experts, at::Device device);
  Routing route_in_training(int64_t layer, const at::Tensor& logits_TE, const TokenNumbers& tokens) override;
  void finish_step(const at::Tensor& count_LE) override;
  at::Tensor state_LE() const override { return bias_is_of_model() ? at::Tensor() : bias_LE_; }
  void restore(const at::Tensor& state_LE) override { bias_LE_.copy_(state_LE); }

 private:
  double rate_;
};

}  // namespace conclave

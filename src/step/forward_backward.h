// Forward and backward of one micro-step through all units: the schedule of a step, to be read from top to bottom.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "base/step_clock.h"
#include "memory/activation_store.h"
#include "model/decoder_layer.h"
#include "model/embedding.h"
#include "model/head.h"
#include "model/micro_batch.h"
#include "sharding/unit_schedule.h"
#include "step/parallel_model.h"
#include "step/step_settings.h"

namespace conclave {

// A micro-step's place in its step.
struct MicroStep {
  bool first = true;
  bool last = true;
  double loss_scale = 1;     // of the sum of cross-entropies: 1 / targets of the step over all ranks
  double balance_scale = 1;  // of this micro-step's balancing losses: 1 / micro-steps
};

struct MicroStepResult {
  double loss_sum = 0;               // of this rank's cross-entropies
  std::vector<double> loss_of_part;  // the same by MicroBatch::part_ends
  Balance balance;                   // of all ranks

  void set_losses(std::vector<double> losses);
};

class ForwardBackward {
 public:
  // `model` outlives it. `assumed`: on paper, where nobody chooses experts; outlives it.
  ForwardBackward(ParallelModel& model, const StepSettings& settings, const AssumedChoices* assumed = nullptr);

  // Leaves reduced gradients in the shards after the step's last micro-step. Collective, like evaluate and trace.
  MicroStepResult train(MicroBatch batch, const MicroStep& micro_step);

  // Losses without gradients.
  MicroStepResult evaluate(const MicroBatch& batch);
  // The logits [B*S, V] of this rank's sequences in fp32, the rotary table they were computed with, and the losses.
  struct Traced {
    at::Tensor logits_TV;
    RotaryTable rotary;
    MicroStepResult result;
  };
  Traced trace(const MicroBatch& batch);

  // Room for what is offloaded of micro-batches of up to `tokens`. An error, before any step, when there is none;
  // train() makes room for a larger one itself.
  void reserve_offload(int64_t tokens);
  // Null without activation_offloading.
  const ActivationStore* offloaded() const { return offloaded_.get(); }

  // Collective, after the parameters were filled, before they are used.
  void take_parameters();
  // After a step that changed the weights: count [L,E] double, CPU, the choices that fell on each expert.
  void finish_step(const at::Tensor& count_LE);

  // The balancing rule's part in the choice of experts, and what it carries from step to step.
  ExpertSelection& selection() { return *selection_; }

  StepClock& clock() { return clock_; }

 private:
  at::Tensor embed(const MicroBatch& batch);
  at::Tensor forward_for_evaluation(const MicroBatch& batch, Balance& balance);
  // Empty of a model without experts.
  std::optional<BalanceReduction> begin_balance(const std::vector<RoutingStatistics>& of_layers,
                                                const MicroBatch& batch) const;
  std::vector<RouterLossGradient> router_losses(const Balance& balance, double balance_scale) const;
  HeadWeights begin_head();
  void end_head();
  HeadGradients head_gradients();
  void begin_rotary(const MicroBatch& batch);
  std::vector<size_t> visits(bool with_backward) const;
  size_t head_unit() const { return layers_.size() + 1; }

  ParallelModel& model_;
  StepSettings settings_;
  std::vector<Unit*> units_;
  StepClock clock_;
  UnitSchedule schedule_;
  std::unique_ptr<ExpertSelection> selection_;
  ExpertCapacity capacity_;
  RoutedExperts experts_;
  Embedding embedding_;
  std::vector<DecoderLayer> layers_;
  Head head_;
  size_t first_backward_;  // layers below it, and the embedding, are frozen
  RotaryTable rotary_;
  std::unique_ptr<ActivationStore> offloaded_;
};

}  // namespace conclave

// Forward and backward of one micro-step through all units: the schedule of a step, to be read from top to bottom.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "config/job.h"
#include "model/micro_batch.h"
#include "model/mixtral_head.h"
#include "model/mixtral_layer.h"
#include "moe/balancing.h"
#include "sharding/unit_schedule.h"
#include "train/parallel_model.h"

namespace conclave {

// A micro-step's place in its step.
struct MicroStep {
  bool first = true;
  bool last = true;
  double loss_scale = 1;     // of the sum of cross-entropies: 1 / targets of the step over all ranks
  double balance_scale = 1;  // of this micro-step's balancing losses: 1 / micro-steps
};

struct MicroStepResult {
  double loss_sum = 0;  // of this rank's cross-entropies
  Balance balance;      // of all ranks
};

// Seconds spent waiting for other ranks.
struct WaitingSeconds {
  double gather = 0;
  double reduce = 0;
  double dispatch = 0;
};

class ForwardBackward {
 public:
  // `model` outlives it. Coefficients: of the auxiliary and the z-loss.
  struct Coefficients {
    double aux = 0;
    double z = 0;
  };
  ForwardBackward(ParallelModel& model, const Job& job, Coefficients coefficients);

  // Leaves reduced gradients in the shards after the step's last micro-step. Collective, like all below.
  MicroStepResult train(const MicroBatch& batch, const MicroStep& micro_step);

  // Losses without gradients.
  MicroStepResult evaluate(const MicroBatch& batch);
  // The logits [B*S, V] of this rank's sequences in fp32, and the losses.
  struct Traced {
    at::Tensor logits_TV;
    MicroStepResult result;
  };
  Traced trace(const MicroBatch& batch);

  WaitingSeconds take_waiting();

 private:
  at::Tensor embed(const MicroBatch& batch);
  at::Tensor forward_for_evaluation(const MicroBatch& batch, Balance& balance);
  HeadWeights begin_head();
  void end_head();
  HeadGradients head_gradients();
  void begin_rotary(const MicroBatch& batch);
  std::vector<size_t> visits(bool with_backward) const;
  size_t head_unit() const { return layers_.size() + 1; }

  ParallelModel& model_;
  std::vector<Unit*> units_;
  UnitSchedule schedule_;
  std::unique_ptr<Dispatcher> dispatcher_;
  std::vector<MixtralLayer> layers_;
  MixtralHead head_;
  Coefficients coefficients_;
  RotaryTable rotary_;
};

}  // namespace conclave

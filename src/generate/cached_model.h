// A model that makes sequences longer: logits of what comes next, of keys and values that are kept from pass to pass.
// Each rank has sequences of its own, or none; all take part in every pass, because they divide the experts.
#pragma once

#include <optional>
#include <vector>

#include "model/attention_cache.h"
#include "model/decoder_layer.h"
#include "model/embedding.h"
#include "model/head.h"
#include "sharding/unit_schedule.h"
#include "step/parallel_model.h"
#include "step/step_settings.h"

namespace conclave {

// Where the weights are between passes.
enum class WeightsBetweenPasses {
  // Gathered once, in the compute dtype. The model gives up its shards: it can neither be trained nor saved any more.
  gathered,
  // Sharded as in training, and gathered unit by unit in each pass: no more memory than a step of evaluation takes.
  sharded,
};

class CachedModel {
 public:
  // `model`, whose parameters are filled, and `selection` outlive it. `most_positions`: the longest sequence.
  // Collective.
  CachedModel(ParallelModel& model, const StepSettings& settings, ExpertSelection& selection,
              WeightsBetweenPasses weights, int64_t most_positions);

  SequenceCache new_cache() const { return SequenceCache(layers_.size()); }

  // This rank's sequences in a pass.
  struct Pass {
    std::vector<int64_t> tokens;  // of all sequences, one behind the other
    NewestTokens newest;
  };
  // The logits [B,V] fp32, on the CPU, of what follows each sequence's last token. Collective.
  at::Tensor extend(Pass pass);

 private:
  void gather_once();
  void begin_pass();
  UnitWeights begin(size_t unit);
  void end(size_t unit);
  RotaryTable rotary_of(const NewestTokens& newest) const;
  at::Tensor last_rows(const at::Tensor& hidden_TH, const NewestTokens& newest) const;
  size_t head_unit() const { return layers_.size() + 1; }

  ParallelModel& model_;
  StepClock clock_;
  std::optional<UnitSchedule> schedule_;  // of sharded weights
  std::vector<UnitWeights> gathered_;     // by unit
  RoutedExperts experts_;
  Embedding embedding_;
  std::vector<DecoderLayer> layers_;
  Head head_;
  RotaryTable rotary_;
};

}  // namespace conclave

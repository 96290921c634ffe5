// A model's declared parameters, laid over the ranks: one sharded Unit for each declared unit. Where a model (which
// knows nothing of ranks) and sharding (which knows nothing of models) meet. No rank ever holds more than its shards
// and the units that are gathered at the moment.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/tensor_slice.h"
#include "config/model_config.h"
#include "optim/optimizer.h"
#include "sharding/unit.h"
#include "step/axes.h"

namespace conclave {

class ParallelModel {
 public:
  // Declares only; `axes` outlives the model.
  ParallelModel(const ModelConfig& config, const Axes& axes, const FlatParameterOptions& options);

  const ModelConfig& config() const { return config_; }
  const Axes& axes() const { return axes_; }
  const FlatParameterOptions& options() const { return options_; }
  const std::vector<UnitDeclaration>& declarations() const { return declarations_; }
  std::vector<Unit*> units();

  void allocate_parameters();
  void allocate_training_state();
  void initialize(uint64_t seed);
  void initialize_adapters(uint64_t seed);  // and nothing else

  // What a run keeps of each parameter from step to step, by the names of a checkpoint: itself, and the optimizer's
  // state.
  std::vector<std::string> kept() const;
  static constexpr std::string_view gradient = "gradient";
  // This rank's ranges of what is kept under `name` of every parameter, or of the gradient, as views of the shards. Of
  // ranks that hold the same range, along the replica
  // axis, each gets it with `all`, only the first with `once`, and each a part of its own with `shared`.
  enum class Replicas { all, once, shared };
  // all; the model's own, of which a published one consists; those that a checkpoint keeps: beside an adapter only what
  // is trained, else all.
  enum class Which { all, of_model, kept };
  std::vector<TensorSlice> slices(std::string_view name, Replicas replicas, Which which = Which::all);
  // Of all parameters this rank's elements that a checkpoint keeps, its share of those that replicas hold too.
  int64_t kept_elements() const;
  std::vector<OptimizerUnit> optimizer_units();

 private:
  bool keeps(const FlatParameter& group) const;

  ModelConfig config_;
  const Axes& axes_;
  FlatParameterOptions options_;
  std::vector<UnitDeclaration> declarations_;
  std::deque<Unit> units_;
};

}  // namespace conclave

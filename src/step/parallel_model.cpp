#include "step/parallel_model.h"

#include <algorithm>

#include "base/error.h"
#include "checkpoint/checkpoint_state.h"
#include "checkpoint/checkpoint_writer.h"
#include "model/parameters.h"

namespace conclave {
namespace {

// The shard called `name`: "parameter", "gradient", or as the optimizer calls it.
const at::Tensor& shard_of(const FlatParameter& group, std::string_view name) {
  if (name == kind_parameter) return group.parameter_shard;
  if (name == ParallelModel::gradient) return group.gradient_shard;
  const std::vector<std::string>& state = group.options().optimizer_state;
  const auto found = std::find(state.begin(), state.end(), name);
  check_invariant(found != state.end(), "the optimizer keeps {}", name);
  return group.optimizer_state.at(static_cast<size_t>(found - state.begin()));
}

// The shard's ranges of equal treatment: neighbouring slices with the same decay rule, and the padding between them,
// are one range.
std::vector<OptimizerRange> ranges_of(FlatParameter& group) {
  std::vector<OptimizerRange> ranges;
  const auto add = [&](int64_t begin, int64_t end, bool decay) {
    const auto part = [&](const at::Tensor& shard) { return shard.narrow(0, begin, end - begin); };
    std::vector<at::Tensor> state;
    for (const at::Tensor& shard : group.optimizer_state) state.push_back(part(shard));
    ranges.push_back({part(group.parameter_shard), std::move(state), part(group.gradient_shard), decay});
  };
  int64_t begin = 0;
  int64_t end = 0;
  bool decay = true;
  for (const FlatLayout::Slice& slice : group.layout().slices(group.shard_axis().rank())) {
    const bool slice_decay = group.parameters()[slice.parameter].decay;
    if (end > begin && slice_decay != decay) {
      add(begin, end, decay);
      begin = slice.shard_offset;
    } else if (end == begin) {
      begin = slice.shard_offset;
    }
    end = slice.shard_offset + slice.numel;
    decay = slice_decay;
  }
  if (end > begin) add(begin, end, decay);
  return ranges;
}

}  // namespace

ParallelModel::ParallelModel(const ModelConfig& config, const Axes& axes, const FlatParameterOptions& options)
    : config_(config), axes_(axes), options_(options), declarations_(declare_model(config)) {
  for (const UnitDeclaration& declaration : declarations_) units_.emplace_back(declaration, axes.sharding(), options);
}

std::vector<Unit*> ParallelModel::units() {
  std::vector<Unit*> units;
  for (Unit& unit : units_) units.push_back(&unit);
  return units;
}

void ParallelModel::allocate_parameters() {
  for (Unit& unit : units_)
    for (FlatParameter& group : unit.groups()) group.allocate_parameters();
}

void ParallelModel::allocate_training_state() {
  for (Unit& unit : units_)
    for (FlatParameter& group : unit.groups()) group.allocate_training_state();
}

void ParallelModel::initialize(uint64_t seed) {
  for (Unit& unit : units_)
    for (FlatParameter& group : unit.groups()) group.initialize(seed);
}

// A group that is trained beside an adapter is the adapter's, and at most the router, whose values come from elsewhere.
void ParallelModel::initialize_adapters(uint64_t seed) {
  for (Unit& unit : units_)
    for (FlatParameter& group : unit.groups()) group.initialize_adapters(seed);
}

std::vector<std::string> ParallelModel::kept() const {
  std::vector<std::string> names = options_.optimizer_state;
  names.insert(names.begin(), std::string(kind_parameter));
  return names;
}

bool ParallelModel::keeps(const FlatParameter& group) const {
  return !config_.adapter || !group.is_frozen();
}

int64_t ParallelModel::kept_elements() const {
  int64_t elements = 0;
  for (const Unit& unit : units_)
    for (const FlatParameter& group : unit.groups()) {
      const int64_t kinds = group.is_frozen() ? 1 : static_cast<int64_t>(kept().size());
      if (keeps(group)) elements += kinds * (group.layout().shard_numel() / group.replica_axis().size());
    }
  return elements;
}

std::vector<TensorSlice> ParallelModel::slices(std::string_view name, Replicas replicas, Which which) {
  std::vector<TensorSlice> slices;
  for (Unit& unit : units_) {
    for (FlatParameter& group : unit.groups()) {
      if (group.is_frozen() && name != kind_parameter) continue;
      if (which == Which::kept && !keeps(group)) continue;
      if (replicas == Replicas::once && group.replica_axis().rank() != 0) continue;
      const at::Tensor& shard = shard_of(group, name);
      std::vector<TensorSlice> of_group;
      for (const FlatLayout::Slice& slice : group.layout().slices(group.shard_axis().rank())) {
        const ParameterDeclaration& parameter = group.parameters()[slice.parameter];
        if (which == Which::of_model && parameter.of_adapter) continue;
        of_group.push_back(
            {parameter.name, parameter.shape, slice.begin, shard.narrow(0, slice.shard_offset, slice.numel)});
      }
      if (replicas == Replicas::shared)
        of_group = share_among_replicas(of_group, group.replica_axis().rank(), group.replica_axis().size());
      slices.insert(slices.end(), of_group.begin(), of_group.end());
    }
  }
  return slices;
}

std::vector<OptimizerUnit> ParallelModel::optimizer_units() {
  std::vector<OptimizerUnit> units;
  for (Unit& unit : units_) {
    OptimizerUnit& optimizer_unit = units.emplace_back();
    for (FlatParameter& group : unit.groups()) {
      if (group.is_frozen()) continue;
      for (OptimizerRange& range : ranges_of(group)) optimizer_unit.ranges.push_back(std::move(range));
      if (group.replica_axis().rank() == 0) optimizer_unit.counted_gradients.push_back(group.gradient_shard);
    }
  }
  return units;
}

}  // namespace conclave

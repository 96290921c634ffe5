#include "sharding/unit.h"

#include <algorithm>

#include "base/error.h"

namespace conclave {

Unit::Unit(const UnitDeclaration& declaration, const ShardingAxes& axes, const FlatParameterOptions& options)
    : name_(declaration.name) {
  std::vector<ParameterDeclaration> dense;
  std::vector<ParameterDeclaration> expert;
  for (const ParameterDeclaration& parameter : declaration.parameters)
    (parameter.kind == ParameterKind::dense ? dense : expert).push_back(parameter);
  size_t next_dense = 0;
  size_t next_expert = 0;
  for (const ParameterDeclaration& parameter : declaration.parameters) {
    if (parameter.kind == ParameterKind::dense)
      places_.push_back({0, next_dense++});
    else
      places_.push_back({dense.empty() ? 0u : 1u, next_expert++});
  }
  FlatParameterOptions of_dense = options;
  of_dense.readers_round = false;  // norms and the embedding want the compute dtype
  if (!dense.empty()) groups_.emplace_back(std::move(dense), 0, 1, axes.shard, axes.replica, of_dense);
  if (!expert.empty())
    groups_.emplace_back(std::move(expert), axes.expert.rank(), axes.expert.size(), axes.expert_shard,
                         axes.expert_replica, options);
}

void Unit::begin_unshard() {
  for (FlatParameter& group : groups_) group.begin_unshard();
}

void Unit::finish_unshard() {
  for (FlatParameter& group : groups_) group.finish_unshard();
}

void Unit::reshard() {
  for (FlatParameter& group : groups_) group.reshard();
}

bool Unit::is_sharded() const {
  return groups_.empty() || groups_.front().state() == ParameterState::sharded;
}

std::vector<at::Tensor> Unit::weights() const {
  std::vector<at::Tensor> weights;
  for (const Place& place : places_) weights.push_back(groups_[place.group].weights()[place.index]);
  return weights;
}

std::vector<Gradient> Unit::gradients() {
  std::vector<std::vector<Gradient>> of_group;
  for (FlatParameter& group : groups_) of_group.push_back(group.gradients());
  std::vector<Gradient> gradients;
  for (const Place& place : places_) gradients.push_back(of_group[place.group][place.index]);
  return gradients;
}

void Unit::begin_reduce(bool first, bool last) {
  for (FlatParameter& group : groups_) group.begin_reduce(first, last);
}

void Unit::finish_reduce() {
  for (FlatParameter& group : groups_) group.finish_reduce();
}

void Unit::finish_replica_sum() {
  for (FlatParameter& group : groups_) group.finish_replica_sum();
}

bool Unit::is_reducing() const {
  return std::any_of(groups_.begin(), groups_.end(), [](const FlatParameter& group) { return group.is_reducing(); });
}

bool Unit::is_gathering() const {
  return std::any_of(groups_.begin(), groups_.end(), [](const FlatParameter& group) { return group.is_gathering(); });
}

bool Unit::is_summing() const {
  return std::any_of(groups_.begin(), groups_.end(), [](const FlatParameter& group) { return group.is_summing(); });
}

bool Unit::is_summing_replicas() const {
  return std::any_of(groups_.begin(), groups_.end(),
                     [](const FlatParameter& group) { return group.is_summing_replicas(); });
}

}  // namespace conclave

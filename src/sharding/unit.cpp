#include "sharding/unit.h"

#include <algorithm>

#include "base/error.h"

namespace conclave {

Unit::Unit(const UnitDeclaration& declaration, const ShardingAxes& axes, const FlatParameterOptions& options)
    : name_(declaration.name) {
  for (const ParameterKind kind : {ParameterKind::dense, ParameterKind::expert})
    for (const bool frozen : {false, true}) add_group(declaration, kind, frozen, axes, options);
}

void Unit::add_group(const UnitDeclaration& declaration, ParameterKind kind, bool frozen, const ShardingAxes& axes,
                     FlatParameterOptions options) {
  places_.resize(declaration.parameters.size());
  std::vector<ParameterDeclaration> members;
  for (size_t i = 0; i < declaration.parameters.size(); ++i) {
    const ParameterDeclaration& parameter = declaration.parameters[i];
    if (parameter.kind != kind || parameter.frozen != frozen) continue;
    places_[i] = {groups_.size(), members.size()};
    members.push_back(parameter);
  }
  if (members.empty()) return;
  if (kind == ParameterKind::dense) {
    options.readers_round = false;  // norms and the embedding want the compute dtype
    groups_.emplace_back(std::move(members), 0, 1, axes.shard, axes.replica, std::move(options));
  } else {
    groups_.emplace_back(std::move(members), axes.expert.rank(), axes.expert.size(), axes.expert_shard,
                         axes.expert_replica, std::move(options));
  }
}

bool Unit::is_frozen() const {
  return std::all_of(groups_.begin(), groups_.end(), [](const FlatParameter& group) { return group.is_frozen(); });
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

#include "planner/planned_units.h"

#include "config/mixtral_parameters.h"
#include "mesh/flat_layout.h"

namespace conclave {
namespace {

PlannedGroup plan_group(const std::vector<ParameterDeclaration>& parameters, const Layout& layout, int rank) {
  const bool expert = parameters.front().kind == ParameterKind::expert;
  PlannedGroup group;
  group.shard_axis = expert ? Axis::expert_shard : Axis::shard;
  group.replica_axis = expert ? Axis::expert_replica : Axis::replica;
  group.shard_degree = layout.degree(group.shard_axis);
  group.replica_degree = layout.degree(group.replica_axis);
  group.replica_index = layout.index(group.replica_axis, rank);
  const FlatLayout flat(parameters, expert ? layout.index(Axis::expert, rank) : 0,
                        expert ? layout.degree(Axis::expert) : 1, group.shard_degree);
  group.numel = flat.numel();
  group.shard_numel = flat.shard_numel();
  return group;
}

}  // namespace

std::vector<PlannedUnit> plan_units(const CheckedJob& job, int rank) {
  std::vector<PlannedUnit> units;
  for (const UnitDeclaration& declaration : declare_mixtral(job.model)) {
    PlannedUnit& unit = units.emplace_back(PlannedUnit{declaration.name, {}});
    for (ParameterKind kind : {ParameterKind::dense, ParameterKind::expert}) {
      std::vector<ParameterDeclaration> parameters;
      for (const ParameterDeclaration& parameter : declaration.parameters)
        if (parameter.kind == kind) parameters.push_back(parameter);
      if (!parameters.empty()) unit.groups.push_back(plan_group(parameters, job.layout, rank));
    }
  }
  return units;
}

}  // namespace conclave

// A unit: what is gathered and freed together. Its dense and its expert parameters are flat groups on different axes,
// the frozen ones of each a group of their own; a model sees one list of tensors in declared order.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sharding/flat_parameter.h"

namespace conclave {

// The axes a unit's parameters live on. All outlive the unit.
struct ShardingAxes {
  Communicator& shard;
  Communicator& replica;
  Communicator& expert;
  Communicator& expert_shard;
  Communicator& expert_replica;
};

class Unit {
 public:
  Unit(const UnitDeclaration& declaration, const ShardingAxes& axes, const FlatParameterOptions& options);

  const std::string& name() const { return name_; }
  bool is_frozen() const;  // all of its parameters are
  std::vector<FlatParameter>& groups() { return groups_; }
  const std::vector<FlatParameter>& groups() const { return groups_; }

  void begin_unshard();
  void finish_unshard();
  void reshard();
  bool is_sharded() const;
  // In declared order; see FlatParameter.
  std::vector<at::Tensor> weights() const;
  std::vector<Gradient> gradients();
  void begin_reduce(bool first, bool last);
  void finish_reduce();
  void finish_replica_sum();
  bool is_reducing() const;
  // Parameters, or sums of gradients, are on their way between ranks.
  bool is_gathering() const;
  bool is_summing() const;
  bool is_summing_replicas() const;

 private:
  void add_group(const UnitDeclaration& declaration, ParameterKind kind, bool frozen, const ShardingAxes& axes,
                 FlatParameterOptions options);

  std::string name_;
  std::vector<FlatParameter> groups_;  // at most two of each kind; never empty groups
  struct Place {
    size_t group;
    size_t index;
  };
  std::vector<Place> places_;  // of each declared parameter
};

}  // namespace conclave

// The parameters of one kind of one unit, and everything a rank remembers of them: the fp32 shard, the optimizer's
// state, the reduced gradient, and, while they are needed, the unsharded copy in the compute dtype and the unsharded
// gradient.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "base/gradient.h"
#include "base/parameter_declaration.h"
#include "comm/communicator.h"
#include "mesh/flat_layout.h"

namespace conclave {

enum class ParameterState {
  sharded,    // this rank's fp32 shard only
  gathering,  // shard + unsharded buffer being filled by an all-gather in flight; must not be read
  unsharded,  // shard + unsharded buffer in the compute dtype (or the whole shard itself), readable
};

// How a group's memory and traffic are to be.
struct FlatParameterOptions {
  at::ScalarType compute_dtype = at::kFloat;
  at::ScalarType reduce_dtype = at::kFloat;
  at::Device device = at::kCPU;
  // Whoever reads the weights takes fp32, too, and rounds it on the way: where the shard is the whole, there is no copy
  // in the compute dtype. So do a CPU's products with experts (kernels/linear.h), which nothing else reads.
  bool readers_round = false;
  std::vector<std::string> optimizer_state = {};  // names of what the optimizer keeps (optim/optimizer.h)
};

class FlatParameter {
 public:
  // `shard`: the axis the group is sharded over; `replica`: the axis over which equal shards exist. Both outlive this
  // object.
  FlatParameter(std::vector<ParameterDeclaration> parameters, int expert_index, int expert_degree, Communicator& shard,
                Communicator& replica, FlatParameterOptions options);

  const std::vector<ParameterDeclaration>& parameters() const { return parameters_; }
  const FlatParameterOptions& options() const { return options_; }
  // All parameters of a group are frozen, or none. A frozen group has neither gradients nor optimizer state.
  bool is_frozen() const { return parameters_.front().frozen; }
  const FlatLayout& layout() const { return layout_; }
  Communicator& shard_axis() const { return shard_; }
  Communicator& replica_axis() const { return replica_; }

  // The state of training, 1-D fp32 [shard_numel]. Padding is zero in all of them, always.
  at::Tensor parameter_shard;
  std::vector<at::Tensor> optimizer_state;  // by the names of the options
  at::Tensor gradient_shard;  // valid between the end of the last reduction and the next step's first backward

  void allocate_parameters();  // zeros
  void allocate_training_state();
  // Fills the parameter shard by the declared initialization; the same values on any layout.
  void initialize(uint64_t seed);
  void initialize_adapters(uint64_t seed);  // and nothing else

  ParameterState state() const { return state_; }
  void begin_unshard();
  void finish_unshard();
  void reshard();
  // One tensor per parameter, in declared order, in the compute dtype (fp32 for readers that round); views of the
  // unsharded buffer. Only when unsharded.
  const std::vector<at::Tensor>& weights() const;

  // The unsharded gradient, one per parameter. The first call since the last reduction gives undefined content (padding
  // is zero) to be written, later calls what was written, to be added to. Of a frozen group they have no tensors.
  std::vector<Gradient> gradients();
  // Starts to sum the unsharded gradients over the shard axis; adds to gradient_shard unless `first` (the step's first
  // micro-step).
  void begin_reduce(bool first, bool last);
  // Waits for that sum; with `last` (the step's last micro-step) the shards are on their way over the replica axis.
  void finish_reduce();
  // Waits for the replicas, too.
  void finish_replica_sum() { replica_sum_.wait(); }
  bool is_summing_replicas() const { return !replica_sum_.is_ready(); }
  bool is_reducing() const { return reducing_; }
  bool is_gathering() const { return !gather_.is_ready(); }  // data is on its way between ranks
  bool is_summing() const { return !reduce_.is_ready(); }

 private:
  void initialize(const FlatLayout::Slice& slice, uint64_t seed);
  std::vector<at::Tensor> views(const at::Tensor& flat) const;
  bool shard_is_whole() const { return shard_.size() == 1; }

  std::vector<ParameterDeclaration> parameters_;
  FlatLayout layout_;
  Communicator& shard_;
  Communicator& replica_;
  FlatParameterOptions options_;

  ParameterState state_ = ParameterState::sharded;
  at::Tensor unsharded_;
  std::vector<at::Tensor> weights_;
  Pending gather_;

  at::Tensor gradient_;  // unsharded; the shard itself when the shard is the whole
  bool gradient_written_ = false;
  bool shard_gradient_valid_ = false;
  bool reducing_ = false;
  bool first_ = true;
  bool last_ = true;
  at::Tensor reduce_input_;
  at::Tensor reduce_output_;
  Pending reduce_;
  Pending replica_sum_;
};

}  // namespace conclave

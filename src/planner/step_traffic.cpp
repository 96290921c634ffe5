#include "planner/step_traffic.h"

#include "base/balance_message.h"
#include "base/row_message.h"
#include "planner/step_walk.h"

namespace conclave {
namespace {

class TrafficObserver : public StepObserver {
 public:
  explicit TrafficObserver(const PlannedRank& rank) : rank_(rank) {}

  TrafficByOperation traffic;

  void begin_gather(size_t unit) override {
    for (const PlannedGroup& group : rank_.units[unit].groups)
      if (group.shard_degree > 1)
        add(group.shard_axis, "all_gather",
            bytes_to_all_others(group.shard_numel * rank_.compute_bytes, group.shard_degree));
  }

  void begin_reduce(size_t unit, bool, bool last) override {
    for (const PlannedGroup& group : rank_.units[unit].groups) {
      if (group.shard_degree > 1)
        add(group.shard_axis, "reduce_scatter",
            bytes_to_all_others(group.shard_numel * rank_.reduce_bytes(), group.shard_degree));
      if (last && group.replica_degree > 1)
        all_reduce(group.replica_axis, group.shard_numel, 4, group.replica_index, group.replica_degree);
    }
  }

  void layer_forward(size_t layer) override {
    const DispatchBytes bytes = dispatch_bytes(rank_, rank_.rows[layer]);
    exchange(bytes.counts);
    exchange(bytes.rows_out);
    exchange(bytes.rows_back);
  }

  void layer_backward(size_t layer) override {
    const DispatchBytes bytes = dispatch_bytes(rank_, rank_.rows[layer]);
    if (rank_.job.job.memory.activation_checkpointing == ActivationCheckpointing::full) {
      exchange(bytes.counts);
      exchange(bytes.rows_out);
    }
    exchange(bytes.gradients_out);
    exchange(bytes.gradients_back);
  }

  void begin_balance() override {
    over_world(balance_message_numbers(static_cast<int64_t>(rank_.layers()), rank_.job.model.num_local_experts));
  }
  void loss_sum() override { over_world(1); }
  void gradient_norm() override { over_world(static_cast<int64_t>(rank_.units.size())); }

 private:
  void add(Axis axis, const char* operation, int64_t bytes) {
    Traffic& of = traffic[{name_of(axis), operation}];
    ++of.calls;
    of.bytes += bytes;
  }
  void all_reduce(Axis axis, int64_t count, int64_t item, int index, int size) {
    add(axis, "all_reduce", all_reduce_bytes(count, item, index, size));
  }
  void over_world(int64_t doubles) { all_reduce(Axis::world, doubles, 8, rank_.rank, rank_.job.layout.world_size()); }
  void exchange(int64_t bytes) {
    if (rank_.job.layout.degree(Axis::expert) > 1) add(Axis::expert, "all_to_all", bytes);
  }

  const PlannedRank& rank_;
};

}  // namespace

DispatchBytes dispatch_bytes(const PlannedRank& rank, const RoutedRows& rows) {
  const int64_t hidden = rank.job.model.hidden_size, degree = rank.job.layout.degree(Axis::expert);
  const int64_t row = hidden * rank.compute_bytes, message = row_message_bytes(hidden, rank.compute_bytes);
  DispatchBytes bytes;
  bytes.counts = bytes_to_all_others(rank.job.model.num_local_experts / degree * 8, static_cast<int>(degree));
  bytes.rows_out = rows.sent_to_others * message;
  bytes.rows_back = rows.received_from_others * row;
  bytes.gradients_out = rows.sent_to_others * row;
  bytes.gradients_back = rows.received_from_others * message;
  return bytes;
}

TrafficByOperation step_traffic(const PlannedRank& rank) {
  TrafficObserver observer(rank);
  walk_step(rank.job, observer);
  return observer.traffic;
}

TrafficByOperation micro_step_traffic(const PlannedRank& rank, bool last) {
  TrafficObserver observer(rank);
  walk_micro_step(rank.job, /*first=*/true, last, observer);
  return observer.traffic;
}

TrafficByOperation evaluation_traffic(const PlannedRank& rank) {
  TrafficObserver observer(rank);
  walk_evaluation(rank.job, observer);
  return observer.traffic;
}

}  // namespace conclave

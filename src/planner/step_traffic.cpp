#include "planner/step_traffic.h"

#include "base/balance_message.h"
#include "planner/dispatch_traffic.h"
#include "planner/step_walk.h"

namespace conclave {
namespace {

class TrafficObserver : public StepObserver {
 public:
  TrafficObserver(const PlannedRank& rank, bool training) : rank_(rank), training_(training) {}

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

  void layer_forward(size_t layer) override { add(forward_sendings(rank_, rank_.rows[layer], training_)); }
  void layer_backward(size_t layer) override { add(backward_sendings(rank_, rank_.rows[layer])); }

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
  void add(const std::vector<Sending>& sendings) {
    for (const Sending& sending : sendings) add(sending.axis, sending.operation, sending.bytes);
  }
  void all_reduce(Axis axis, int64_t count, int64_t item, int index, int size) {
    add(axis, "all_reduce", all_reduce_bytes(count, item, index, size));
  }
  void over_world(int64_t doubles) { all_reduce(Axis::world, doubles, 8, rank_.rank, rank_.job.layout.world_size()); }
  const PlannedRank& rank_;
  bool training_;
};

}  // namespace

TrafficByOperation step_traffic(const PlannedRank& rank) {
  TrafficObserver observer(rank, /*training=*/true);
  walk_step(rank.job, observer);
  return observer.traffic;
}

TrafficByOperation micro_step_traffic(const PlannedRank& rank, bool last) {
  TrafficObserver observer(rank, /*training=*/true);
  walk_micro_step(rank.job, /*first=*/true, last, observer);
  return observer.traffic;
}

TrafficByOperation evaluation_traffic(const PlannedRank& rank) {
  TrafficObserver observer(rank, /*training=*/false);
  walk_evaluation(rank.job, observer);
  return observer.traffic;
}

}  // namespace conclave

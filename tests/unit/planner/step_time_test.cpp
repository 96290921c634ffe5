// The model of time. Oracle: by hand, on devices whose numbers are round.
#include "planner/collective_time.h"
#include "planner/paper_step.h"

#include <gtest/gtest.h>

#include "config/model_flops.h"
#include "mixtral_shape.h"

namespace conclave {
namespace {

// shard: of dense parameters, a multiple of expert.
CheckedJob job_of(int world, int64_t shard, int64_t expert, int64_t prefetch = 1, int64_t layers = 4) {
  Job job;
  job.data.sequence_length = 1024;
  job.parallel.hybrid_shard_degree = shard / expert;
  job.parallel.expert_parallel_degree = expert;
  job.parallel.prefetch_units = prefetch;
  job.precision.compute = Precision::fp32;
  MixtralShape model;
  model.num_hidden_layers = layers;
  return check_job(job, model, world);
}

// Everything but what a test sets takes no time.
DeviceDescription instant() {
  DeviceDescription device;
  device.compute = {1e30, 1e30, 1e30, 1, 1};
  device.memory = {1e12, 0, 1e30, 1e30, 1e30};
  device.network = {1 << 20, 0, 1e30, 0, 1e30};
  return device;
}

PlannedTime time_of(const CheckedJob& job, const DeviceDescription& device) {
  return plan_step(plan_rank(job, 0, device, std::make_shared<AssumedRouting>(job, 0, 1))).time;
}

double sum_of_parts(const PlannedTime& time) {
  return time.products + time.attention + time.memory_passes + time.optimizer + time.dispatch + time.gather_wait +
         time.reduce_wait + time.offload_wait;
}

double busy_of(const PlannedTime& time) {
  double busy = 0;
  for (const auto& [axis, seconds] : time.busy_by_axis) busy += seconds;
  return busy;
}

TEST(StepTime, of_products_alone_is_the_models_arithmetic) {
  DeviceDescription device = instant();
  device.compute = {2e12, 1e30, 1e30, 0.5, 0.5};  // 1e12 reached
  const CheckedJob job = job_of(1, 1, 1);
  const PlannedTime time = time_of(job, device);
  const ForwardFlops flops = forward_flops_per_token(job.model, 1024);
  // Causal attention skips half of the scores that the published convention counts.
  const double expected = 1024.0 * 3 * (flops.total() - flops.attention_scores / 2) / 1e12;
  EXPECT_NEAR(time.step_seconds, expected, 1e-6 * expected);
  EXPECT_NEAR(time.model_flops_utilization, 1024.0 * 3 * flops.total() / expected / 2e12, 1e-6);
}

TEST(StepTime, parts_add_up_to_the_step) {
  for (const char* name : {"h100-80", "cpu"})
    for (int64_t shard : {2, 8, 64}) {
      const PlannedTime time = time_of(job_of(64, shard, 2), read_device(name));
      EXPECT_NEAR(sum_of_parts(time), time.step_seconds, 1e-9 * time.step_seconds) << name << " " << shard;
    }
}

// With one link at a megabyte a second and nothing else, a step is what its collectives take, one after the other.
TEST(StepTime, of_communication_alone_is_every_byte) {
  DeviceDescription device = instant();
  device.network.node_bandwidth = 1e6;
  const PlannedTime time = time_of(job_of(8, 8, 1), device);
  const double busy = busy_of(time);
  EXPECT_NEAR(time.step_seconds, busy, 1e-6 * busy);
  EXPECT_NEAR(time.gather_wait + time.reduce_wait, busy, 1e-6 * busy);
  // Dispatch is never hidden.
  const PlannedTime dispatched = time_of(job_of(8, 8, 2), device);
  const double rows = dispatched.busy_by_axis.at("expert");
  EXPECT_NEAR(dispatched.dispatch, rows, 1e-6 * rows);
}

// Two replicas of four shards. Alone, their sums take every byte's time, too; where a layer computes for longer than
// its gradients travel, all but the last units' are hidden, however many layers there are.
TEST(StepTime, sums_over_replicas_hide_under_the_computation) {
  DeviceDescription device = instant();
  device.network.node_bandwidth = 1e6;
  const PlannedTime alone = time_of(job_of(8, 4, 1), device);
  EXPECT_NEAR(alone.step_seconds, busy_of(alone), 1e-6 * busy_of(alone));

  device.network.node_bandwidth = 1e10;
  device.compute = {1e11, 1e11, 1e11, 1};
  const PlannedTime few = time_of(job_of(8, 4, 1), device), many = time_of(job_of(8, 4, 1, 1, /*layers=*/12), device);
  EXPECT_GT(many.busy_by_axis.at("expert_replica"), 2.9 * few.busy_by_axis.at("expert_replica"));
  // The gradient's norm has a number for each unit, which takes nanoseconds.
  EXPECT_NEAR(many.reduce_wait, few.reduce_wait, 1e-6 * few.reduce_wait);
}

TEST(StepTime, prefetched_gathers_hide_under_the_computation) {
  DeviceDescription device = instant();
  device.network.node_bandwidth = 1e10;  // a layer is gathered in half the time its forward takes
  device.compute = {1e12, 1e12, 1e12, 1};
  const PlannedTime hidden = time_of(job_of(8, 8, 1, /*prefetch=*/1), device);
  const PlannedTime waited = time_of(job_of(8, 8, 1, /*prefetch=*/0), device);
  EXPECT_LT(hidden.gather_wait, 0.3 * waited.gather_wait);
  EXPECT_NEAR(hidden.products, waited.products, 1e-6 * waited.products);
}

TEST(CollectiveTime, crosses_nodes_once_for_each_node_with_rings_and_once_for_each_rank_without) {
  DeviceDescription device = instant();
  device.network = {4, 0, 1e30, 0, 1};  // only bytes across nodes take time
  const GroupOnNodes group{8, 4};
  // 7 parts of 1 byte, 4 of them for the other node, whose 4 ranks pass them on.
  EXPECT_DOUBLE_EQ(collective_seconds(CollectivePattern::gather_or_scatter, 7, group, device), 1.0);
  EXPECT_DOUBLE_EQ(collective_seconds(CollectivePattern::all_to_all, 7, group, device), 4.0);
  device.device.kind = at::kCPU;
  EXPECT_DOUBLE_EQ(collective_seconds(CollectivePattern::gather_or_scatter, 7, group, device), 4.0);
}

// Oracle: the ranks of the group, counted one by one.
TEST(CollectiveTime, knows_the_ranks_on_a_node) {
  DeviceDescription device = instant();
  for (int64_t on_a_node : {1, 3, 4, 5, 8, 100}) {
    device.network.ranks_per_node = on_a_node;
    for (const auto& [shard, expert] : {std::pair(8, 4), {24, 2}, {2, 4}, {1, 8}, {12, 4}}) {
      const Layout layout = job_of(24, shard, expert).layout;
      for (Axis axis :
           {Axis::world, Axis::replica, Axis::shard, Axis::expert_replica, Axis::expert_shard, Axis::expert})
        for (int rank = 0; rank < 24; ++rank) {
          const AxisGroup group = layout.group(axis, rank);
          int here = 0;
          for (int other : group.ranks) here += other / on_a_node == rank / on_a_node ? 1 : 0;
          const GroupOnNodes found = group_on_nodes(layout, axis, rank, device);
          EXPECT_EQ(found.ranks, group.size());
          EXPECT_EQ(found.here, here) << name_of(axis) << " of rank " << rank << ", " << on_a_node << " on a node";
        }
    }
  }
}

}  // namespace
}  // namespace conclave

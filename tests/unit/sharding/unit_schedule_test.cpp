#include "sharding/unit_schedule.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <deque>
#include <set>
#include <string>

#include "base/error.h"
#include "comm/local_communicator.h"
#include "fake_communicator.h"

namespace conclave {
namespace {

// Units of one dense and one expert parameter each, sharded over two ranks, of which this is one.
class UnitScheduleTest : public testing::Test {
 protected:
  UnitScheduleTest() {
    for (int i = 0; i < 4; ++i) {
      ParameterDeclaration expert, dense;
      expert.name = fmt::format("unit{}.experts", i);
      expert.shape = {4, 3, 5};
      expert.kind = ParameterKind::expert;
      expert.init_std = 1.0f;
      dense.name = fmt::format("unit{}.dense", i);
      dense.shape = {9, 3};
      dense.init_std = 1.0f;
      units_.emplace_back(UnitDeclaration{fmt::format("unit{}", i), {expert, dense}},
                          ShardingAxes{shard_, one_, expert_, expert_shard_, one_}, FlatParameterOptions{});
      for (FlatParameter& group : units_.back().groups()) {
        group.allocate_parameters();
        group.allocate_training_state();
        group.initialize(1);
      }
    }
  }
  std::vector<Unit*> units() {
    std::vector<Unit*> pointers;
    for (Unit& unit : units_) pointers.push_back(&unit);
    return pointers;
  }
  std::set<size_t> gathered() const {
    std::set<size_t> indices;
    for (size_t i = 0; i < units_.size(); ++i)
      if (!units_[i].is_sharded()) indices.insert(i);
    return indices;
  }

  FakeCommunicator shard_{"shard", 0, 2}, expert_{"expert", 1, 2}, expert_shard_{"expert_shard", 0, 2};
  LocalCommunicator one_{"replica"};
  std::deque<Unit> units_;
  StepClock clock_{4};
};

const std::vector<size_t> forward_and_backward{0, 1, 2, 3, 2, 1};

// Oracle: the words of the header, as sets. While a visit computes, exactly its unit and those of the next
// `prefetch_units` visits are gathered; without resharding also those that were visited and will be again.
TEST_F(UnitScheduleTest, gathers_what_computes_and_what_comes_next) {
  for (const int64_t prefetch_units : {0, 1, 2, 3, 100})
    for (const bool reshard : {true, false}) {
      UnitSchedule schedule(units(), {prefetch_units, std::vector<bool>(units_.size(), !reshard)}, clock_);
      schedule.start(forward_and_backward);
      for (size_t visit = 0; visit < forward_and_backward.size(); ++visit) {
        SCOPED_TRACE(fmt::format("prefetch {}, reshard {}, visit {}", prefetch_units, reshard, visit));
        const size_t unit = forward_and_backward[visit];
        std::set<size_t> expected;
        for (size_t i = visit; i < forward_and_backward.size() && i <= visit + static_cast<size_t>(prefetch_units); ++i)
          expected.insert(forward_and_backward[i]);
        for (size_t before = 0; before < visit && !reshard; ++before)
          for (size_t after = visit; after < forward_and_backward.size(); ++after)
            if (forward_and_backward[before] == forward_and_backward[after])
              expected.insert(forward_and_backward[after]);
        EXPECT_EQ(&schedule.begin(unit), &units_[unit]);
        EXPECT_EQ(gathered(), expected);
        schedule.end(unit);
      }
      schedule.finish();
      EXPECT_TRUE(gathered().empty());
    }
}

// Oracle: a unit that stays is gathered from its first visit to its last one, the others as if none stayed.
TEST_F(UnitScheduleTest, single_units_stay_gathered_between_their_visits) {
  for (const int64_t prefetch_units : {0, 1, 2})
    for (const std::vector<bool>& stays : {std::vector<bool>{false, true, false, false},
                                           {false, false, true, false},
                                           {false, true, true, false},
                                           {true, false, false, true}}) {
      UnitSchedule schedule(units(), {prefetch_units, stays}, clock_);
      schedule.start(forward_and_backward);
      for (size_t visit = 0; visit < forward_and_backward.size(); ++visit) {
        SCOPED_TRACE(fmt::format("prefetch {}, visit {}", prefetch_units, visit));
        std::set<size_t> expected;
        for (size_t i = visit; i < forward_and_backward.size() && i <= visit + static_cast<size_t>(prefetch_units); ++i)
          expected.insert(forward_and_backward[i]);
        for (size_t unit = 0; unit < stays.size(); ++unit) {
          const auto begin = forward_and_backward.begin(), now = begin + static_cast<std::ptrdiff_t>(visit);
          const bool before = std::find(begin, now, unit) != now;
          const bool after = std::find(now, forward_and_backward.end(), unit) != forward_and_backward.end();
          if (stays[unit] && before && after) expected.insert(unit);
        }
        schedule.begin(forward_and_backward[visit]);
        EXPECT_EQ(gathered(), expected);
        schedule.end(forward_and_backward[visit]);
      }
      schedule.finish();
      EXPECT_TRUE(gathered().empty());
    }
}

TEST_F(UnitScheduleTest, refuses_a_unit_out_of_its_turn_and_a_micro_step_cut_short) {
  UnitSchedule schedule(units(), {}, clock_);
  schedule.start({0, 1});
  EXPECT_THROW(schedule.begin(1), InvariantError);
  schedule.begin(0);
  EXPECT_THROW(schedule.start({0, 1}), InvariantError);
  schedule.begin(1);
  EXPECT_THROW(schedule.begin(0), InvariantError);
}

TEST_F(UnitScheduleTest, one_reduction_is_in_flight_at_most) {
  UnitSchedule schedule(units(), {}, clock_);
  const auto reducing = [&] {
    return std::count_if(units_.begin(), units_.end(), [](const Unit& unit) { return unit.is_reducing(); });
  };
  for (const size_t unit : {3, 2, 1}) {
    for (Gradient& gradient : units_[unit].gradients()) gradient.zeroed();
    schedule.reduce(unit, true, true);
    EXPECT_EQ(reducing(), 1);
    EXPECT_TRUE(units_[unit].is_reducing());
  }
  schedule.finish();
  EXPECT_EQ(reducing(), 0);
}

// What a replica axis is asked, and when it is waited for. Every call is ready at once.
class RecordingReplica final : public Communicator {
 public:
  explicit RecordingReplica(std::vector<std::string>& events) : Communicator("replica", 0, 2), events_(events) {}
  Pending all_reduce(at::Tensor tensor, Reduction) override {
    const std::string name = fmt::format("sum {}", tensor.numel());
    events_.push_back("begin " + name);
    return Pending([&events = events_, name] { events.push_back("wait for " + name); });
  }
  Pending all_gather(at::Tensor, at::Tensor) override { return {}; }
  Pending reduce_scatter(at::Tensor, at::Tensor) override { return {}; }
  Pending all_to_all(at::Tensor, at::Tensor, std::vector<int64_t>, std::vector<int64_t>) override { return {}; }
  Pending broadcast(at::Tensor, int) override { return {}; }
  void barrier() override {}

 private:
  std::vector<std::string>& events_;
};

// Oracle: by hand. A unit's sum begins when its shards are summed, which the next unit's reduction waits for, and is
// waited for one unit later; only the last micro-step has one. Units are told by their sizes.
TEST_F(UnitScheduleTest, sums_over_replicas_run_beside_the_next_unit) {
  std::vector<std::string> events;
  RecordingReplica replica(events);
  std::deque<Unit> replicated;
  for (int i = 1; i <= 3; ++i) {
    ParameterDeclaration dense;
    dense.name = fmt::format("unit{}", i);
    dense.shape = {32 * i, 1};  // a shard of two is 16 i
    replicated.emplace_back(UnitDeclaration{dense.name, {dense}}, ShardingAxes{shard_, replica, one_, one_, one_},
                            FlatParameterOptions{});
    for (FlatParameter& group : replicated.back().groups()) {
      group.allocate_parameters();
      group.allocate_training_state();
    }
  }
  UnitSchedule schedule({&replicated[0], &replicated[1], &replicated[2]}, {}, clock_);
  for (const bool last : {false, true}) {
    for (const size_t unit : {2, 1, 0}) {
      for (Gradient& gradient : replicated[unit].gradients()) gradient.zeroed();
      events.push_back(fmt::format("reduce unit {}", unit));
      schedule.reduce(unit, !last, last);
    }
    schedule.finish();
    const std::vector<std::string> alone = {"reduce unit 2", "reduce unit 1", "reduce unit 0"};
    const std::vector<std::string> summed = {"reduce unit 2",   "reduce unit 1",   "begin sum 48",
                                             "reduce unit 0",   "wait for sum 48", "begin sum 32",
                                             "wait for sum 32", "begin sum 16",    "wait for sum 16"};
    EXPECT_EQ(events, last ? summed : alone);
    events.clear();
  }
}

// Declared order, though expert and dense parameters live in different buffers; this rank has half of the experts.
TEST_F(UnitScheduleTest, a_unit_gives_its_tensors_in_declared_order) {
  UnitSchedule schedule(units(), {}, clock_);
  schedule.start({0});
  const std::vector<at::Tensor> weights = schedule.begin(0).weights();
  ASSERT_EQ(weights.size(), 2u);
  EXPECT_EQ(weights[0].sizes(), (at::IntArrayRef{2, 3, 5}));
  EXPECT_EQ(weights[1].sizes(), (at::IntArrayRef{9, 3}));
  const std::vector<Gradient> gradients = units_[0].gradients();
  EXPECT_EQ(gradients[0].tensor.sizes(), weights[0].sizes());
  EXPECT_EQ(gradients[1].tensor.sizes(), weights[1].sizes());
}

}  // namespace
}  // namespace conclave

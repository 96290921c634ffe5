// Jobs drawn at random, each run by the engine and on paper. Oracle: the engine's own counts. Traffic exactly, memory
// by category within measured_memory.h's tolerance.
#include <random>

#include "comm/counting_communicator.h"
#include "dist/planner/measured_memory.h"
#include "fake_communicator.h"
#include "mixtral_shape.h"
#include "optim/optimizer.h"

namespace conclave {
namespace {

using testing::Case;

class Draw {
 public:
  explicit Draw(unsigned seed) : engine_(seed) {}
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[engine_() % values.size()];
  }
  bool chance(int of) { return engine_() % of == 0; }
  int below(int end) { return static_cast<int>(engine_() % end); }

 private:
  std::mt19937 engine_;
};

// What FakeCommunicator's world can play (sinkhorn's iterations and shuffled rows follow from other ranks' values).
Case draw_case(Draw& draw) {
  using enum ActivationCheckpointing;
  Case c{.name = "drawn", .world = draw.one_of({1, 2, 4, 8})};
  c.rank = draw.below(c.world);
  do {
    c.shard = draw.one_of<int64_t>({1, 2, 4, 8});
    c.expert = draw.one_of<int64_t>({1, 2, 4, 8});
  } while (c.world % c.shard != 0 || c.shard % c.expert != 0);
  c.checkpointing = draw.one_of({none, selective, full});
  c.offloading = c.checkpointing != none && draw.chance(3);
  c.prefetch_units = draw.below(4);
  c.reshard_after_forward = draw.one_of<const char*>({"true", "true", "false", "all but layers.1"});
  c.tied = draw.chance(4);
  c.micro_steps = draw.one_of<int64_t>({1, 1, 2, 4});
  c.sequences = draw.one_of<int64_t>({1, 2, 3});
  c.moe.moe_load_balancing =
      draw.one_of({LoadBalancing::aux_loss, LoadBalancing::none, LoadBalancing::balanced, LoadBalancing::bias});
  if (draw.chance(5)) c.moe.capacity_factor = 100;
  if (draw.chance(4)) c.moe.dispatcher = DispatcherKind::all_gather;
  if (draw.chance(3)) c.moe.dispatch_chunks = draw.one_of<int64_t>({2, 3});
  if (c.moe.dispatcher == DispatcherKind::all_to_all && !c.moe.dispatch_chunks && draw.chance(3)) {
    c.moe.overload = OverloadPolicy::spill;
    c.moe.spill_threshold = 1.01;
    c.moe.spill_least_rows = 1;
  }
  return c;
}

ModelConfig draw_model(Draw& draw) {
  MixtralShape model;
  model.vocab_size = draw.one_of({501, 2000});
  model.hidden_size = draw.one_of({64, 192});
  model.intermediate_size = draw.one_of({96, 384});
  model.num_hidden_layers = draw.one_of({2, 3, 4});
  model.num_attention_heads = 4;
  model.num_key_value_heads = draw.one_of({1, 2, 4});
  model.head_dim = draw.one_of({16, 48});
  model.num_local_experts = draw.one_of({8, 16});
  model.num_experts_per_tok = draw.one_of({1, 2, 3});
  model.initializer_range = 0.2;  // so that routing is not even
  return model;
}

std::string text_of(const Case& c) {
  return fmt::format(
      "world {}, rank {}, shard {}, expert {}, checkpointing {}, offloading {}, prefetch {}, reshard {}, tied {}, {} "
      "micro-steps of {}, balancing {}, capacity {}, dispatcher {}, chunks {}, overload {}",
      c.world, c.rank, c.shard, c.expert, static_cast<int>(c.checkpointing), c.offloading, c.prefetch_units,
      c.reshard_after_forward, c.tied, c.micro_steps, c.sequences, static_cast<int>(c.moe.moe_load_balancing),
      c.moe.capacity_factor.value_or(0), static_cast<int>(c.moe.dispatcher), c.moe.dispatch_chunks.value_or(1),
      c.moe.overload == OverloadPolicy::spill ? "spill" : "none");
}

// Of a step: micro-steps, the sum of the loss, the norm.
TrafficByOperation traffic_of_engine(const Case& c, const CheckedJob& job) {
  const auto count = std::make_shared<TrafficCount>();
  const Axes axes(job.layout, c.rank, [&](const AxisGroup& group, const std::string& axis) {
    return std::make_unique<CountingCommunicator>(std::make_unique<FakeCommunicator>(axis, group.index, group.size()),
                                                  count);
  });
  testing::EngineRank engine(c, job, axes);
  const MicroBatch batch = testing::batch_of(job, c.rank);
  for (int64_t m = 0; m < c.micro_steps; ++m)
    engine.forward_backward->train(batch, {m == 0, m == c.micro_steps - 1, 0.01, 1.0});
  axes.world().all_reduce(at::zeros({1}, at::kDouble)).wait();
  Optimizer(make_optimizer_rule({}), 1.0, engine.model.optimizer_units()).gradient_squares(axes.world(), at::kCPU);
  return count->reset();
}

TEST(RandomJobs, are_on_paper_what_they_are_in_the_engine) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    Draw draw(seed);
    const Case c = draw_case(draw);
    SCOPED_TRACE(fmt::format("seed {}: {}", seed, text_of(c)));
    const CheckedJob job = testing::check(c, draw_model(draw), draw.one_of<int64_t>({96, 160}), 100);
    const Axes axes(job.layout, c.rank, [](const AxisGroup& group, const std::string& axis) {
      return std::make_unique<FakeCommunicator>(axis, group.index, group.size());
    });
    const testing::Measured measured = testing::measure(c, job, axes);
    const PlannedStep planned = plan_step(
        testing::plan_of(c, job, DeviceKind::cpu, false, testing::routing_of_fake_rank(c, measured.choices_LE)));
    // Which of an expert's rows fall into which part of the tokens, a plan cannot know.
    if (!c.moe.dispatch_chunks) testing::expect_planned(measured.memory, planned.memory);
    EXPECT_EQ(planned.traffic, traffic_of_engine(c, job));
    if (HasFailure()) break;  // one job says enough
  }
}

}  // namespace
}  // namespace conclave

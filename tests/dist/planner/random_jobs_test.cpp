// Jobs drawn at random, each run by the engine and on paper. Oracle: the engine's own counts. Traffic exactly, memory
// by category within measured_memory.h's tolerance.
#include "dist/planner/random_jobs.h"
#include "comm/counting_communicator.h"
#include "dist/planner/measured_memory.h"
#include "fake_communicator.h"
#include "mixtral_shape.h"
#include "optim/optimizer.h"

namespace conclave {
namespace {

using testing::Case;
using testing::Draw;

// Of a step: micro-steps, the sum of the loss, the norm, what ranks tell each other at the end.
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
  axes.world().all_reduce(at::zeros({testing::numbers_of_step_exchange}, at::kDouble)).wait();
  return count->reset();
}

TEST(RandomJobs, are_on_paper_what_they_are_in_the_engine) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    Draw draw(seed);
    const Case c = testing::draw_case(draw);
    SCOPED_TRACE(fmt::format("seed {}: {}", seed, testing::text_of(c)));
    const CheckedJob job = testing::check(c, testing::draw_model(draw), draw.one_of<int64_t>({96, 160}), 100);
    const Axes axes(job.layout, c.rank, [](const AxisGroup& group, const std::string& axis) {
      return std::make_unique<FakeCommunicator>(axis, group.index, group.size());
    });
    const testing::Measured measured = testing::measure(c, job, axes);
    const PlannedStep planned =
        plan_step(testing::plan_of(c, job, at::kCPU, false, testing::routing_of_fake_rank(c, measured.choices_LE)));
    // Which of an expert's rows fall into which part of the tokens, a plan cannot know.
    if (!c.moe.dispatch_chunks) testing::expect_planned(measured.memory, planned.memory);
    EXPECT_EQ(planned.traffic, traffic_of_engine(c, job));
    if (HasFailure()) break;  // one job says enough
  }
}

}  // namespace
}  // namespace conclave

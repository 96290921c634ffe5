// An optimizer is all in its rule: one that only this file knows, SGD with momentum, trains over sharded and replicated
// parameters, is saved, and goes on from what was saved. Oracles: the same run without a stop, to the bit; and the
// formula on each element of the shards.
#include <ATen/ATen.h>

#include "checkpoint/checkpoint_reader.h"
#include "checkpoint/checkpoint_writer.h"
#include "dist/world.h"
#include "mixtral_shape.h"
#include "optim/optimizer.h"
#include "step/forward_backward.h"
#include "unit/checkpoint/thread_world.h"

namespace conclave {
namespace {

using testing::run_ranks;

constexpr int64_t sequence = 12;
constexpr double lr = 0.05, decay_of_momentum = 0.75;  // exact in fp32

class Momentum final : public OptimizerRule {
 public:
  std::vector<std::string> state() const override { return {"momentum"}; }
  void update(const OptimizerRange& range, const Update& update) const override {
    range.state.at(0).mul_(decay_of_momentum).add_(range.gradient, update.grad_scale);
    range.parameter.add_(range.state.at(0), -update.lr);
  }
};

ModelConfig small_model() {
  MixtralShape model;
  model.vocab_size = 37;
  model.hidden_size = 12;
  model.intermediate_size = 10;
  model.num_hidden_layers = 2;
  model.num_attention_heads = 3;
  model.num_key_value_heads = 1;
  model.head_dim = 4;
  model.num_local_experts = 4;
  model.num_experts_per_tok = 2;
  model.initializer_range = 0.3;
  return model;
}

MicroBatch batch_of(int rank, int64_t step) {
  at::Generator generator = at::detail::createCPUGenerator(static_cast<uint64_t>(100 * step + rank));
  const auto tokens = [&] { return at::randint(37, {sequence}, generator, at::kLong); };
  return {tokens(), tokens(), 1, sequence, {rank}, {}};
}

StepSettings settings_of(const Job& job, const Layout& layout) {
  StepSettings settings = step_settings(CheckedJob{job, small_model(), layout, 1, {}, {}}, at::kFloat, at::kCPU);
  settings.parameters.optimizer_state = Momentum().state();
  return settings;
}

struct Training {
  Training(const Job& job, const Layout& layout, const Axes& axes)
      : settings(settings_of(job, layout)), model(small_model(), axes, settings.parameters) {
    model.allocate_parameters();
    model.allocate_training_state();
    model.initialize(3);
  }

  void run(int64_t first, int64_t last) {
    ForwardBackward forward_backward(model, settings);
    Optimizer optimizer(std::make_unique<Momentum>(), /*grad_clip=*/0, model.optimizer_units());
    for (int64_t step = first; step <= last; ++step) {
      forward_backward.train(batch_of(model.axes().world().rank(), step), {true, true, 1.0 / sequence, 1.0});
      const std::vector<FlatParameter*> groups = groups_of_model();
      std::vector<at::Tensor> momentum, parameter;
      for (const FlatParameter* group : groups) {
        momentum.push_back(group->optimizer_state.at(0) * decay_of_momentum + group->gradient_shard);
        parameter.push_back(group->parameter_shard - lr * momentum.back());
      }
      optimizer.update(lr, step, /*gradient_norm=*/1);
      for (size_t i = 0; i < groups.size(); ++i) {  // one rounding of each operation, maybe fused
        EXPECT_TRUE(at::allclose(groups[i]->optimizer_state[0], momentum[i], 1e-6, 1e-9));
        EXPECT_TRUE(at::allclose(groups[i]->parameter_shard, parameter[i], 1e-6, 1e-9));
      }
    }
  }

  std::vector<FlatParameter*> groups_of_model() {
    std::vector<FlatParameter*> groups;
    for (Unit* unit : model.units())
      for (FlatParameter& group : unit->groups()) groups.push_back(&group);
    return groups;
  }

  std::vector<TensorSlice> slices(ParallelModel::Replicas replicas) {
    std::vector<TensorSlice> all;
    for (const std::string& kind : model.kept())
      for (TensorSlice& slice : model.slices(kind, replicas)) {
        slice.name = state_tensor_name(kind, slice.name);
        all.push_back(std::move(slice));
      }
    return all;
  }

  StepSettings settings;
  ParallelModel model;
};

void expect_resumes_to_the_bit(World& world, const Job& job, const std::filesystem::path& folder) {
  const Layout layout(world.size(), job.parallel, small_model().experts());
  const Axes axes(layout, world.rank(),
                  [&](const AxisGroup& group, const std::string& axis) { return world.communicator(group, axis); });
  Training whole(job, layout, axes), first(job, layout, axes), resumed(job, layout, axes);
  whole.run(1, 4);
  first.run(1, 2);
  CheckpointWriter writer(folder, axes.world(), std::nullopt);
  writer.begin({.step = 2}, first.slices(ParallelModel::Replicas::shared));
  writer.finish();

  CheckpointReader reader(folder / "step-00000002");
  for (const auto& [name, tensor] : reader.manifest().tensors)
    EXPECT_TRUE(name.starts_with("parameter/") || name.starts_with("momentum/")) << name;
  reader.load(resumed.slices(ParallelModel::Replicas::all));
  resumed.run(3, 4);
  const std::vector<TensorSlice> expected = whole.slices(ParallelModel::Replicas::all);
  const std::vector<TensorSlice> actual = resumed.slices(ParallelModel::Replicas::all);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_TRUE(actual[i].data.equal(expected[i].data)) << actual[i].name;
}

TEST(OptimizerRule, of_its_own_trains_saves_and_resumes) {
  for (const bool replicated : {false, true}) {
    SCOPED_TRACE(replicated ? "replicas" : "shards");
    const TestFolder folder;
    run_ranks(2, [&](World& world) {
      Job job;
      job.parallel.expert_parallel_degree = replicated ? 1 : 2;
      job.parallel.hybrid_shard_degree = 1;
      expect_resumes_to_the_bit(world, job, folder.path());
    });
  }
}

// AdamW reads parameter, two moments and gradient, and writes all but the gradient; fp32.
TEST(OptimizerRule, says_what_its_pass_costs) {
  EXPECT_EQ(make_optimizer_rule({})->bytes_per_element(), 28);
  EXPECT_EQ(Momentum().bytes_per_element(), 20);
}

}  // namespace
}  // namespace conclave

// Offloading the inputs of recomputed layers changes no bit of losses and gradients, and holds no more of them than it
// says. Oracle: the same micro-steps without offloading, and the account of tensor memory.
#include <ATen/ATen.h>

#include <filesystem>

#include "dist/world.h"
#include "memory/memory_category.h"
#include "mixtral_shape.h"
#include "step/forward_backward.h"

namespace conclave {
namespace {

using testing::run_ranks;

// Before any tensor of this program; its ranks are forks of it.
const bool installed = (install_counting_allocator(), true);

constexpr int64_t sequence = 24;

ModelConfig model_of(int64_t layers) {
  MixtralShape model;
  model.vocab_size = 101;
  model.hidden_size = 24;
  model.intermediate_size = 20;
  model.num_hidden_layers = layers;
  model.num_attention_heads = 3;
  model.num_key_value_heads = 1;
  model.head_dim = 8;
  model.num_local_experts = 4;
  model.num_experts_per_tok = 2;
  model.router_jitter_noise = 0.1;  // recomputation repeats it
  model.initializer_range = 0.3;
  return model;
}

// Sequences of this rank in micro-step `m`; rank 1 has none in the second.
MicroBatch batch_of(int rank, int64_t m, int64_t sequences) {
  const int64_t batch = rank == 1 && m == 1 ? 0 : sequences;
  at::Generator generator = at::detail::createCPUGenerator(static_cast<uint64_t>(100 * m + rank));
  const auto tokens = [&] { return at::randint(101, {batch * sequence}, generator, at::kLong); };
  MicroBatch micro_batch{tokens(), tokens(), batch, sequence, {}, {}};
  for (int64_t b = 0; b < batch; ++b) micro_batch.sample_of_B.push_back(10 * rank + b);
  return micro_batch;
}

struct Outcome {
  std::vector<double> losses;
  std::vector<at::Tensor> gradients;
  int64_t most_on_device = 0;
  int64_t activations = 0;  // at their peak
};

Outcome run(const Axes& axes, const Layout& layout, Job job, int64_t layers, int64_t sequences) {
  job.memory.offload_folder = std::filesystem::temp_directory_path();
  const ModelConfig config = model_of(layers);
  StepSettings settings = step_settings(CheckedJob{job, config, layout, 1, {}, {}}, at::kFloat, at::kCPU);
  settings.aux_coefficient = 0.01;
  settings.z_coefficient = 0.001;
  ParallelModel model(config, axes, settings.parameters);
  model.allocate_parameters();
  model.allocate_training_state();
  model.initialize(3);
  ForwardBackward forward_backward(model, settings);
  forward_backward.reserve_offload(sequences * sequence);
  Outcome outcome;
  reset_memory_peaks();
  const int64_t before = memory_report().now.of[static_cast<int>(MemoryCategory::activations)];
  constexpr int64_t micro_steps = 3;
  for (int64_t m = 0; m < micro_steps; ++m) {
    const MicroStepResult result = forward_backward.train(batch_of(axes.world().rank(), m, sequences),
                                                          {m == 0, m == micro_steps - 1, 0.01, 1.0 / micro_steps});
    outcome.losses.push_back(result.loss_sum);
    outcome.losses.push_back(result.balance.aux_loss);
  }
  outcome.activations = memory_report().peak_of.of[static_cast<int>(MemoryCategory::activations)] - before;
  for (Unit* unit : model.units())
    for (FlatParameter& group : unit->groups()) outcome.gradients.push_back(group.gradient_shard.clone());
  if (const ActivationStore* store = forward_backward.offloaded()) outcome.most_on_device = store->most_on_device();
  return outcome;
}

void expect_same_bits(const Outcome& outcome, const Outcome& expected) {
  EXPECT_EQ(outcome.losses, expected.losses);
  ASSERT_EQ(outcome.gradients.size(), expected.gradients.size());
  for (size_t i = 0; i < outcome.gradients.size(); ++i)
    EXPECT_TRUE(outcome.gradients[i].equal(expected.gradients[i])) << "gradients of group " << i;
}

struct LayoutCase {
  int64_t shard, expert;
};

void expect_offloading_changes_no_bit(World& world, const std::vector<LayoutCase>& cases,
                                      const std::vector<int64_t>& horizons) {
  constexpr int64_t layers = 5, sequences = 3;
  constexpr int64_t input_bytes = sequences * sequence * 24 * 4;
  for (const LayoutCase& c : cases) {
    Job job;
    job.parallel.hybrid_shard_degree = c.shard;
    job.parallel.expert_parallel_degree = c.expert;
    const Layout layout(world.size(), job.parallel, 4);
    const Axes axes(layout, world.rank(),
                    [&](const AxisGroup& group, const std::string& axis) { return world.communicator(group, axis); });
    const Outcome nothing_repeated = run(axes, layout, job, layers, sequences);
    for (const auto policy : {ActivationCheckpointing::full, ActivationCheckpointing::selective}) {
      job.memory.activation_checkpointing = policy;
      job.memory.activation_offloading = false;
      const Outcome kept = run(axes, layout, job, layers, sequences);
      expect_same_bits(kept, nothing_repeated);
      job.memory.activation_offloading = true;
      for (const int64_t horizon : horizons) {
        SCOPED_TRACE(fmt::format("shard {}, expert {}, {}, horizon {}", c.shard, c.expert,
                                 policy == ActivationCheckpointing::full ? "full" : "selective", horizon));
        job.memory.activation_loading_horizon = horizon;
        const Outcome offloaded = run(axes, layout, job, layers, sequences);
        expect_same_bits(offloaded, kept);
        EXPECT_EQ(offloaded.most_on_device, std::min(layers, horizon));
        // In forward, inputs on their way out and the one that is being computed with may be there together.
        EXPECT_LE(offloaded.activations, kept.activations - std::max<int64_t>(0, layers - horizon - 1) * input_bytes);
      }
    }
  }
}

TEST(Offload, changes_no_bit_on_one_rank) {
  ASSERT_TRUE(installed);
  run_ranks(1, [](World& world) { expect_offloading_changes_no_bit(world, {{1, 1}}, {1, 2, 3, 4, 5, 9}); });
}

TEST(Offload, changes_no_bit_on_two_ranks) {
  run_ranks(2, [](World& world) { expect_offloading_changes_no_bit(world, {{2, 1}, {1, 1}, {1, 2}}, {1, 2}); });
}

TEST(Offload, changes_no_bit_on_four_ranks) {
  run_ranks(4, [](World& world) { expect_offloading_changes_no_bit(world, {{2, 2}, {1, 4}}, {2}); });
}

// More layers need no more of the device but for their choices of experts, which stay. Without offloading each also
// adds its input.
TEST(Offload, activations_do_not_grow_with_the_layers) {
  run_ranks(1, [](World& world) {
    const Layout layout(1, ParallelConfig{}, 4);
    const Axes axes(layout, 0,
                    [&](const AxisGroup& group, const std::string& axis) { return world.communicator(group, axis); });
    constexpr int64_t sequences = 8, input_bytes = sequences * sequence * 24 * 4;
    constexpr int64_t choice_bytes = sequences * sequence * 2 * 4;  // top 2, int32
    Job job;
    job.memory.activation_checkpointing = ActivationCheckpointing::full;
    const int64_t kept_6 = run(axes, layout, job, 6, sequences).activations;
    const int64_t kept_12 = run(axes, layout, job, 12, sequences).activations;
    EXPECT_EQ(kept_12 - kept_6, 6 * (input_bytes + choice_bytes));
    job.memory.activation_offloading = true;
    const int64_t offloaded_6 = run(axes, layout, job, 6, sequences).activations;
    const int64_t offloaded_12 = run(axes, layout, job, 12, sequences).activations;
    // One input of play: how many are on their way out at the peak depends on how fast the copies are.
    EXPECT_LE(offloaded_12 - offloaded_6, input_bytes + 6 * choice_bytes);
    EXPECT_LE(offloaded_12, kept_12 - (12 - 2 - 1) * input_bytes);
  });
}

}  // namespace
}  // namespace conclave

// Whole micro-steps as on a GPU, on the CPU: the kernels of src/cuda run by the emulator, products whole and grouped,
// attention by its reference, for FlashAttention has no form here (head dims are no multiple of 8: the plan knows it).
#include <ATen/ATen.h>

#include "cuda/kernel_table.h"
#include "device/cpu_device.h"
#include "dist/planner/measured_memory.h"
#include "fake_communicator.h"
#include "mixtral_shape.h"

namespace conclave {
namespace {

using testing::batch_of;
using testing::Case;
using testing::EngineRank;
using testing::expect_planned;
using testing::measure;
using testing::Measured;

// While it lives, the CPU is a device as CUDA: its facts, and the kernels of src/cuda.
class AsOnCuda final : public CpuDevice {
 public:
  AsOnCuda() { use_device(at::kCPU, this); }
  ~AsOnCuda() override { use_device(at::kCPU, nullptr); }
  const DeviceFacts& facts() const override { return cuda_facts; }
  const Kernels& kernels() const override { return cuda::kernel_table; }
};

// Products of oneDNN have scratch memory, which is counted.
struct WithoutOneDnn {
  WithoutOneDnn() { at::globalContext().setUserEnabledMkldnn(false); }
  ~WithoutOneDnn() { at::globalContext().setUserEnabledMkldnn(true); }
};

struct Shape {
  int64_t intermediate = 384;  // 1190 is no multiple of 8: experts one after the other
  int64_t sequence = 64;       // 256 tokens in all
  int64_t loss_chunk_tokens = 4096;
};

CheckedJob job_of(const Case& c, const Shape& shape) {
  MixtralShape model;
  model.vocab_size = 500;
  model.hidden_size = 192;
  model.intermediate_size = shape.intermediate;
  model.num_hidden_layers = 2;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 2;
  model.head_dim = 36;
  model.num_local_experts = 8;
  model.num_experts_per_tok = 2;
  return testing::check(c, model, shape.sequence, shape.loss_chunk_tokens);
}

Axes axes_of(const CheckedJob& job, int rank) {
  return {job.layout, rank, [](const AxisGroup& group, const std::string& axis) {
            return std::make_unique<FakeCommunicator>(axis, group.index, group.size());
          }};
}

struct EmulatedCase {
  Case job;
  Shape shape = {};
};
void PrintTo(const EmulatedCase& c, std::ostream* out) {
  *out << c.job.name;
}

class EmulatedStep : public ::testing::TestWithParam<EmulatedCase> {};

// One chunk of tokens, one part, one micro-step: a CPU widens what it adds to a sum in fp32, a GPU does not.
std::vector<EmulatedCase> cases() {
  using enum ActivationCheckpointing;
  const auto bf16 = at::kBFloat16;
  return {
      {{.name = "grouped", .compute = bf16, .sequences = 4}},
      {{.name = "grouped_selective", .checkpointing = selective, .compute = bf16, .sequences = 4}},
      {{.name = "grouped_full", .checkpointing = full, .compute = bf16, .sequences = 4}},
      {{.name = "grouped_shard4_expert2",
        .world = 4,
        .rank = 3,
        .shard = 4,
        .expert = 2,
        .checkpointing = full,
        .compute = bf16,
        .sequences = 4}},
      {{.name = "grouped_expert4", .world = 4, .rank = 1, .shard = 4, .expert = 4, .compute = bf16, .sequences = 4}},
      {{.name = "loop", .compute = bf16, .sequences = 16}, {.intermediate = 1190, .sequence = 16}},
      {{.name = "loop_full_shard4_expert2",
        .world = 4,
        .rank = 1,
        .shard = 4,
        .expert = 2,
        .checkpointing = full,
        .compute = bf16,
        .sequences = 16},
       {.intermediate = 1190, .sequence = 16}},
      {{.name = "fp32", .sequences = 4}},
      {{.name = "fp32_selective_expert2",
        .world = 4,
        .rank = 1,
        .shard = 4,
        .expert = 2,
        .checkpointing = selective,
        .sequences = 4}},
      {{.name = "long_sequences", .sequences = 1}, {.sequence = 256}},
      {{.name = "long_sequences_bf16", .checkpointing = full, .compute = bf16, .sequences = 1}, {.sequence = 256}},
  };
}
INSTANTIATE_TEST_SUITE_P(All, EmulatedStep, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.job.name; });

// Oracle: the planner's ledger of a rank on a GPU, but for cuBLAS's workspace. Tolerances: measured_memory.h.
TEST_P(EmulatedStep, allocates_what_is_planned_for_a_gpu) {
  const auto& [c, shape] = GetParam();
  const AsOnCuda as_on_cuda;
  const WithoutOneDnn without_onednn;
  const CheckedJob job = job_of(c, shape);
  const Measured measured = measure(c, job, axes_of(job, c.rank));
  const auto routing = testing::routing_of_fake_rank(c, measured.choices_LE);
  PlannedMemory planned = plan_step(testing::plan_of(c, job, at::kCUDA, false, routing)).memory;
  for (MemoryUse* use : {&planned.peak_of, &planned.at_peak}) {
    use->total -= cublas_workspace_bytes;
    use->of[static_cast<int>(MemoryCategory::workspace)] -= cublas_workspace_bytes;
  }
  expect_planned(measured.memory, planned);
}

// Where sums are added to, tokens are dropped, and choices made otherwise.
std::vector<EmulatedCase> cases_to_compute() {
  std::vector<EmulatedCase> all = cases();
  const auto add = [&](const char* name, const MoeConfig& moe) {
    all.push_back({{.name = name, .sequences = 4, .moe = moe}, {.loss_chunk_tokens = 100}});
  };
  add("sinkhorn", {.moe_load_balancing = LoadBalancing::sinkhorn});
  add("balanced", {.moe_load_balancing = LoadBalancing::balanced});
  add("bias", {.moe_load_balancing = LoadBalancing::bias});
  add("capacity", {.capacity_factor = 0.8});
  add("capacity_by_position", {.capacity_factor = 0.8, .drop_policy = DropPolicy::position});
  add("jitter", {.router_jitter_noise = 0.1});
  add("parts", {.dispatch_chunks = 2});
  Case& parts = all.back().job;
  parts.world = parts.shard = parts.expert = 4;
  all.push_back(all.back());
  all.back().job.name = "grouped_parts";
  all.back().job.compute = at::kBFloat16;
  return all;
}

class EmulatedComputation : public ::testing::TestWithParam<EmulatedCase> {};
INSTANTIATE_TEST_SUITE_P(All, EmulatedComputation, ::testing::ValuesIn(cases_to_compute()),
                         [](const auto& info) { return info.param.job.name; });

struct Computed {
  double loss_sum;
  std::vector<at::Tensor> gradients;
};

Computed compute(const EmulatedCase& of) {
  const CheckedJob job = job_of(of.job, of.shape);
  const Axes axes = axes_of(job, of.job.rank);
  EngineRank engine(of.job, job, axes);
  Computed computed;
  computed.loss_sum = engine.forward_backward->train(batch_of(job, of.job.rank), {true, true, 0.01, 1.0}).loss_sum;
  for (Unit* unit : engine.model.units())
    for (FlatParameter& group : unit->groups()) computed.gradients.push_back(group.gradient_shard.clone());
  return computed;
}

// Oracle: the same micro-step by the CPU's kernels. Tolerance, of a gradient's length: sums in another order in fp32;
// in bf16 roundings at other places in some thirty operations one behind the other, and choices of the router that
// turn over a rounding.
TEST_P(EmulatedComputation, is_the_cpus) {
  const double tolerance = GetParam().job.in_bf16() ? 0.1 : 1e-4;
  const Computed on_cpu = compute(GetParam());
  const AsOnCuda as_on_cuda;
  const Computed emulated = compute(GetParam());
  EXPECT_NEAR(emulated.loss_sum, on_cpu.loss_sum, tolerance / 20 * std::abs(on_cpu.loss_sum));
  for (size_t i = 0; i < on_cpu.gradients.size(); ++i) {
    const double length = on_cpu.gradients[i].norm().item<double>();
    EXPECT_LE((emulated.gradients[i] - on_cpu.gradients[i]).norm().item<double>(), tolerance * length) << i;
  }
}

}  // namespace
}  // namespace conclave

// One rank of the engine as a layout makes it, for holding the planner's predictions against what it does.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda_kernels.h"
#include "planner/planned_rank.h"
#include "train/forward_backward.h"

namespace conclave::testing {

struct Case {
  std::string name;
  int world = 1, rank = 0;
  int64_t shard = 1, expert = 1;
  ActivationCheckpointing checkpointing = ActivationCheckpointing::none;
  int64_t prefetch_units = 1;
  std::string reshard_after_forward = "true";
  bool offloading = false;
  bool tied = false;
  at::ScalarType compute = at::kFloat, reduce = at::kFloat;
  int64_t micro_steps = 1;
  int64_t sequences = 2;
  MoeConfig moe = {};

  bool in_bf16() const { return compute == at::kBFloat16; }
};
inline void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

inline CheckedJob check(const Case& c, ModelConfig model, int64_t sequence, int64_t loss_chunk_tokens) {
  model.tie_word_embeddings = c.tied;
  Job job;
  job.data.sequence_length = sequence;
  job.data.micro_batch_size = c.sequences;
  job.data.global_batch_size = c.sequences * c.world * c.micro_steps;
  job.parallel.hybrid_shard_degree = c.shard;
  job.parallel.expert_parallel_degree = c.expert;
  job.parallel.prefetch_units = c.prefetch_units;
  job.parallel.reshard_after_forward =
      ReshardRule::parse(c.reshard_after_forward).value_or(ReshardRule(c.reshard_after_forward == "true"));
  job.moe = c.moe;
  job.memory.activation_offloading = c.offloading;
  job.memory.offload_folder = std::filesystem::temp_directory_path();
  job.memory.activation_checkpointing = c.checkpointing;
  job.memory.loss_chunk_tokens = loss_chunk_tokens;
  job.precision.compute = c.in_bf16() ? Precision::bf16 : Precision::fp32;
  job.precision.reduce = c.reduce == at::kBFloat16 ? Precision::bf16 : Precision::fp32;
  return check_job(std::move(job), model, c.world);
}

// Tokens that depend on the rank alone.
inline MicroBatch batch_of(const CheckedJob& job, int rank) {
  at::Generator generator = at::detail::createCPUGenerator(77 + static_cast<uint64_t>(rank));
  const int64_t batch = job.job.data.micro_batch_size, sequence = job.job.data.sequence_length;
  const auto tokens = [&] { return at::randint(job.model.vocab_size, {batch * sequence}, generator, at::kLong); };
  std::vector<int64_t> samples(static_cast<size_t>(batch));
  std::iota(samples.begin(), samples.end(), rank * batch);
  return {tokens(), tokens(), batch, sequence, samples};
}

struct EngineRank {
  EngineRank(const Case& c, const CheckedJob& job, const Axes& axes)
      : model(job.model, axes, {c.compute, c.reduce, at::kCPU, /*readers_round=*/cuda_kernels(at::kCPU) == nullptr}) {
    model.allocate_parameters();
    model.allocate_training_state();
    model.initialize(3);
    forward_backward.emplace(model, job.job, ForwardBackward::Coefficients{0.01, 0.001});
  }
  ParallelModel model;
  std::optional<ForwardBackward> forward_backward;
};

// What the router chose, by layer and global expert, of each rank of one expert group.
using ChoicesByRank = std::vector<at::Tensor>;  // double [layers, experts]

// The rows that these choices bring to and from the rank at place `index` of the group.
inline std::vector<RoutedRows> rows_of(const ChoicesByRank& choices, size_t index) {
  const auto degree = static_cast<int64_t>(choices.size()), local = choices[0].size(1) / degree;
  const auto own = static_cast<int64_t>(index);
  const auto count = [](const at::Tensor& part) { return static_cast<int64_t>(part.sum().item<double>()); };
  std::vector<RoutedRows> rows;
  for (int64_t layer = 0; layer < choices[0].size(0); ++layer) {
    RoutedRows& of = rows.emplace_back();
    at::Tensor of_expert_L = at::zeros({local}, at::kDouble);
    for (int64_t source = 0; source < degree; ++source) {
      const at::Tensor chosen_E = choices[source][layer];
      const at::Tensor here_L = chosen_E.narrow(0, own * local, local);
      of_expert_L += here_L;
      if (source != own) of.received_from_others += count(here_L);
      if (source == own) {
        of.sent = count(chosen_E);
        of.sent_to_others = of.sent - count(here_L);
      }
    }
    of.received = count(of_expert_L);
    of.largest_expert = static_cast<int64_t>(of_expert_L.max().item<double>());
  }
  return rows;
}

// FakeCommunicator gives a rank the counts it sent: what it sends to rank p for that rank's expert l comes back from p
// for its own expert l.
inline std::vector<RoutedRows> rows_of_fake_rank(const at::Tensor& choices_LE, int64_t degree, int64_t index) {
  const int64_t local = choices_LE.size(1) / degree;
  std::vector<RoutedRows> rows;
  for (int64_t layer = 0; layer < choices_LE.size(0); ++layer) {
    const at::Tensor of_rank = choices_LE[layer].view({degree, local});
    RoutedRows& of = rows.emplace_back();
    of.sent = of.received = static_cast<int64_t>(of_rank.sum().item<double>());
    of.sent_to_others = of.received_from_others =
        of.received - static_cast<int64_t>(of_rank[index].sum().item<double>());
    of.largest_expert = static_cast<int64_t>(of_rank.sum(0).max().item<double>());
  }
  return rows;
}

inline PlannedRank plan_of(const Case& c, const CheckedJob& job, Backend backend, std::vector<RoutedRows> rows) {
  PlannedRank planned = plan_rank(job, c.rank, backend, c.in_bf16(), std::move(rows));
  planned.threads = at::get_num_threads();
  return planned;
}

}  // namespace conclave::testing

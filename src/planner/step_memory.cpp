#include "planner/step_memory.h"

#include <algorithm>

#include "mesh/collective_bytes.h"
#include "planner/layer_memory.h"
#include "planner/memory_ledger.h"
#include "planner/step_walk.h"

namespace conclave {
namespace {

using enum MemoryCategory;
using Block = MemoryLedger::Block;

constexpr int64_t fp32 = 4;

class MemoryObserver : public StepObserver {
 public:
  explicit MemoryObserver(const PlannedRank& rank)
      : rank_(rank),
        layer_(rank, ledger_),
        groups_(rank.units.size()),
        first_(rank.units.size()),
        states_(rank.layers()) {
    doing("setting up", 0);
    int64_t elements = 0, saved = 0;
    for (size_t unit = 0; unit < rank.units.size(); ++unit) {
      groups_[unit].resize(rank.units[unit].groups.size());
      for (const PlannedGroup& group : rank.units[unit].groups) {
        elements += group.shard_numel;
        saved += group.shard_numel / group.replica_degree;
      }
    }
    kept_.push_back(ledger_.hold(parameters, elements * fp32));
    kept_.push_back(ledger_.hold(moments, 2 * elements * fp32));
    kept_.push_back(ledger_.hold(gradients, elements * fp32));
    // Replicas share the writing. From a GPU the copies go to memory of the host, which is not what is planned.
    const CheckpointConfig& checkpoints = rank.job.job.checkpoint;
    if (checkpoints.every > 0 && checkpoints.async && rank.backend != Backend::cuda_nccl)
      kept_.push_back(ledger_.hold(checkpoint, 3 * saved * fp32));
    if (rank.backend == Backend::cuda_nccl) kept_.push_back(ledger_.hold(workspace, cublas_workspace_bytes));
    const int64_t sequence = rank.job.job.data.sequence_length;
    kept_.push_back(ledger_.hold(workspace, sequence * rank.job.model.head_dim * fp32));  // rotary tables
  }

  PlannedMemory result() const {
    return {ledger_.peak_of(), ledger_.at_peak(), ledger_.peak_moment().text(), most_offloaded_};
  }

  bool training = true;

  void begin_micro_step() override {
    batch_ = ledger_.hold(workspace, 2 * rank_.job.tokens_per_rank() * static_cast<int64_t>(sizeof(int64_t)));
  }
  void end_micro_step() override {
    at_replicas_.clear();
    stream_.free();
    batch_.free();
  }

  void begin_gather(size_t unit) override {
    for (size_t i = 0; i < groups_[unit].size(); ++i) {
      const PlannedGroup& group = planned(unit, i);
      if (!is_read_in_place(group))
        groups_[unit][i].unsharded = ledger_.hold(unsharded_parameters, group.numel * rank_.compute_bytes);
    }
  }
  void free(size_t unit) override {
    for (Group& group : groups_[unit]) group.unsharded.free();
  }

  void embedding_forward() override {
    doing("forward of", 0);
    stream_ = ledger_.hold(activations, layer_.hidden_bytes());
  }
  void layer_forward(size_t layer) override {
    doing("forward of", layer + 1);
    stream_ = training ? layer_.forward(std::move(stream_), rank_.rows[layer], states_[layer])
                       : layer_.evaluate(std::move(stream_), rank_.rows[layer]);
  }

  void begin_offload(size_t) override { offloaded_ += layer_.hidden_bytes(); }
  void finish_offload(size_t layer) override { states_[layer].input_TH.free(); }
  void begin_return(size_t layer) override {
    offloaded_ -= layer_.hidden_bytes();
    states_[layer].input_TH = ledger_.hold(activations, layer_.hidden_bytes());
  }

  void head() override {
    most_offloaded_ = std::max(most_offloaded_, offloaded_);
    doing("", rank_.units.size() - 1);
    ledger_.now_doing.part = "loss";
    const int64_t hidden = rank_.job.model.hidden_size;
    const int64_t count = std::min(rank_.job.job.memory.loss_chunk_tokens, rank_.job.tokens_per_rank());
    const Block rstd_C = ledger_.hold(workspace, count * fp32);
    const Block normed_CH = ledger_.hold(workspace, count * hidden * rank_.compute_bytes);
    const int64_t vocabulary = rank_.job.model.vocab_size;
    { const Block logits_CV = ledger_.hold(logits, count * vocabulary * rank_.compute_bytes); }
    if (!training) return;
    const Block grad_CH = ledger_.hold(workspace, count * hidden * rank_.compute_bytes);
    const Block norm = layer_.norm_buffers(count);
  }

  void begin_gradients(size_t unit) override {
    doing("backward of", unit);
    for (size_t i = 0; i < groups_[unit].size(); ++i)
      if (!is_whole(planned(unit, i)))
        groups_[unit][i].gradient = ledger_.hold(unsharded_gradients, planned(unit, i).numel * fp32);
  }
  void layer_backward(size_t layer) override {
    doing("backward of", layer + 1);
    stream_ = layer_.backward(std::move(stream_), rank_.rows[layer], std::move(states_[layer]));
  }
  void embedding_backward() override { doing("backward of", 0); }

  void begin_reduce(size_t unit, bool first, bool last) override {
    doing("reduction of", unit);
    first_[unit] = first;
    for (size_t i = 0; i < groups_[unit].size(); ++i) {
      const PlannedGroup& of = planned(unit, i);
      Group& group = groups_[unit][i];
      if (is_whole(of)) {
        if (last && of.replica_degree > 1) group.staged = stage_all_reduce(of);
        continue;
      }
      const bool in_fp32 = rank_.reduce_bytes() == fp32;
      if (!in_fp32) {
        Block rounded = ledger_.hold(unsharded_gradients, of.numel * rank_.reduce_bytes());
        group.gradient = std::move(rounded);
      }
      if (!first || !in_fp32) group.sum = ledger_.hold(unsharded_gradients, of.shard_numel * rank_.reduce_bytes());
      if (rank_.backend == Backend::cpu_gloo)
        group.staged = ledger_.hold(unsharded_gradients, (of.shard_degree - 1) * of.shard_numel * rank_.reduce_bytes());
    }
  }
  void finish_reduce(size_t unit, bool last) override {
    at_replicas_.clear();  // the previous unit's are summed
    for (size_t i = 0; i < groups_[unit].size(); ++i) {
      const PlannedGroup& of = planned(unit, i);
      Group& group = groups_[unit][i];
      group.staged.free();
      // Later micro-steps' sums are added; in bf16, a CPU widens them first.
      if (rank_.backend != Backend::cuda_nccl && group.sum.bytes() > 0 && rank_.reduce_bytes() != fp32 && !first_[unit])
        const Block widened = ledger_.hold(workspace, of.shard_numel * fp32);
      group.gradient.free();
      group.sum.free();
      if (last && !is_whole(of) && of.replica_degree > 1) at_replicas_.push_back(stage_all_reduce(of));
    }
  }

 private:
  struct Group {
    Block unsharded;
    Block gradient;  // unsharded; while it is reduced, what is sent
    Block sum;       // of the shard, where it cannot go where it belongs at once
    Block staged;    // what other ranks sent, before it is summed
  };

  static bool is_whole(const PlannedGroup& group) { return group.shard_degree == 1; }
  // Products on a CPU round whole experts as they read them (train/parallel_job.cpp).
  bool is_read_in_place(const PlannedGroup& group) const {
    const bool readers_round = group.shard_axis == Axis::expert_shard && rank_.backend != Backend::cuda_nccl;
    return is_whole(group) && (rank_.compute_bytes == fp32 || readers_round);
  }
  const PlannedGroup& planned(size_t unit, size_t group) const { return rank_.units[unit].groups[group]; }
  void doing(const char* phase, size_t unit) { ledger_.now_doing = {phase, rank_.units[unit].name.c_str(), ""}; }

  // Gloo's communicator receives into buffers of its own before it sums.
  Block stage_all_reduce(const PlannedGroup& group) {
    if (rank_.backend != Backend::cpu_gloo) return {};
    const int64_t bytes = group.shard_numel * fp32;
    const int64_t part = all_reduce_in_one_go(bytes, group.replica_degree)
                             ? bytes
                             : (part_begin(group.shard_numel, group.replica_index + 1, group.replica_degree) -
                                part_begin(group.shard_numel, group.replica_index, group.replica_degree)) *
                                   fp32;
    return ledger_.hold(workspace, (group.replica_degree - 1) * part);
  }

  const PlannedRank& rank_;
  MemoryLedger ledger_;
  LayerMemory layer_;
  std::vector<Block> kept_;
  std::vector<std::vector<Group>> groups_;  // of each unit
  std::vector<Block> at_replicas_;          // of the unit whose sum over replicas is under way
  std::vector<bool> first_;                 // the unit's reduction under way is the step's first
  std::vector<LayerMemory::State> states_;
  int64_t offloaded_ = 0, most_offloaded_ = 0;
  Block batch_;
  Block stream_;
};

}  // namespace

PlannedMemory step_memory(const PlannedRank& rank) {
  MemoryObserver observer(rank);
  CheckedJob job = rank.job;
  job.micro_steps = std::min<int64_t>(job.micro_steps, 3);  // those between the first and the last are alike
  walk_step(job, observer);
  return observer.result();
}

PlannedMemory evaluation_memory(const PlannedRank& rank) {
  MemoryObserver observer(rank);
  observer.training = false;
  walk_evaluation(rank.job, observer);
  return observer.result();
}

}  // namespace conclave

// The tensors of a decoder layer's forward and backward, as model/mixtral_layer.cpp, moe/ and kernels/ allocate them.
// What lies between routing and the residual stream (moe/routed_experts.cpp) is in routed_memory.cpp.
#pragma once

#include <vector>

#include "planner/memory_ledger.h"
#include "planner/planned_rank.h"

namespace conclave {

class LayerMemory {
 public:
  using Block = MemoryLedger::Block;

  // What model/mixtral_layer.h calls LayerState.
  struct State {
    Block input_TH;
    Block input_rstd_T;
    Block qkv_TM;
    Block attention_TN;
    Block logsumexp_BNS;
    Block hidden_TH;
    Block hidden_rstd_T;
    Block routing;  // scores, logsumexp, weights
    Block choices;  // of experts: kept by every policy
    struct Part {
      Block plan;  // row orders
      Block row_RH;
      Block weight_R;
      Block gate_up_RJ;
      bool has_rows = false;
      bool has_gate_up = false;
    };
    std::vector<Part> parts;
    bool has_choices = false;
    bool has_attention = false;
    bool has_routing = false;
  };

  // Both outlive this object.
  LayerMemory(const PlannedRank& rank, MemoryLedger& ledger);

  // What the stream of hidden states becomes; `state` keeps what the checkpointing policy keeps.
  Block forward(Block input_TH, const RoutedRows& rows, State& state);
  Block evaluate(Block input_TH, const RoutedRows& rows);
  Block backward(Block grad_TH, const RoutedRows& rows, State state);

  int64_t hidden_bytes() const { return tokens_ * hidden_ * item_; }
  // What the norm of that many tokens needs in its backward pass.
  Block norm_buffers(int64_t tokens);
  // With precision.experts: fp8, so many elements in fp8 with a scale for each block (weights have fewer).
  Block fp8_copies(int64_t elements);
  // And a product of so many elements with the rows that fill up the last 16 of them.
  Block fp8_padding(int64_t elements);

 private:
  Block run(const RoutedRows& rows, bool keep_gate_up, State& state);
  void compute_attention(State& state);
  void compute_routing(State& state);

  // Rows on their way: what is sent, and what arrives.
  struct Flight {
    Block sent;
    Block arrived;
    Block weights;  // that travel by themselves
    Block staged;   // what other ranks sent, before it is summed
  };
  struct DispatchGradient {
    Block token_TH;
    Block weight_TK;
  };
  // `tokens`: the tokens, let go as soon as the last part is sent.
  Block routed_forward(Block tokens, const RoutedRows& rows, bool keep_gate_up, State& state);
  DispatchGradient routed_backward(Block tokens, const RoutedRows& rows, State& state);
  bool needs_tokens(const State& state) const;
  void plan_parts(State& state);
  int64_t tokens_of(size_t part) const;
  int64_t choices_of(size_t part) const { return tokens_of(part) * top_k_; }
  bool gathers() const { return !alone_ && rank_.job.job.moe.dispatcher == DispatcherKind::all_gather; }
  bool shuffles() const { return !alone_ && rank_.job.job.moe.global_token_shuffle; }
  Block shuffled(size_t part, int64_t bytes_of_token);
  Flight gathered(size_t part, bool with_weights);
  Flight begin_dispatch(size_t part, State::Part& state);
  void finish_dispatch(size_t part, Flight& flight, State::Part& state);
  Block experts_forward(size_t part, bool keep_gate_up, State::Part& state);
  Block grouped_experts_forward(const RoutedRows& rows, bool keep_gate_up, State::Part& state);
  struct ExpertRowGradient {
    Block row_RH;
    Block weight_R;
  };
  ExpertRowGradient experts_backward(const RoutedRows& rows, State::Part& state);
  ExpertRowGradient grouped_experts_backward(const RoutedRows& rows, State::Part& state);
  Flight begin_combine(size_t part, Block row_RH);
  void finish_combine(size_t part, Flight& flight);
  Flight begin_combine_backward(size_t part);
  Block finish_combine_backward(size_t part, Flight& flight);
  Flight experts_and_dispatch_backward(size_t part, Block grad_RH, State::Part& state);
  void finish_dispatch_backward(size_t part, Flight& flight);
  Block reduced(int64_t bytes, Flight& flight);
  int64_t chunk_rows(const RoutedRows& rows) const;  // the most of an expert's that are computed at once
  int64_t expert_elements() const { return 3 * hidden_ * intermediate_; }
  bool on_cuda() const { return rank_.backend == Backend::cuda_nccl; }
  bool groups(const RoutedRows& rows) const;  // all experts' products are one
  Block attention_buffers(MemoryCategory category, bool backward);
  Block flash_buffers(MemoryCategory category, bool backward);
  Block reference_attention_buffers(MemoryCategory category, bool backward);
  Block cpu_attention_buffers(MemoryCategory category, bool backward);
  Block hold(MemoryCategory category, int64_t bytes) { return ledger_.hold(category, bytes); }

  const PlannedRank& rank_;
  MemoryLedger& ledger_;
  bool alone_;  // expert degree 1: nothing travels
  int64_t degree_;
  std::vector<RoutedRows> parts_;  // of the layer at hand
  int64_t tokens_, hidden_, intermediate_, heads_, query_width_, packed_width_, experts_, top_k_;
  int64_t item_;     // bytes of an element
  int64_t message_;  // bytes of a row on its way
};

}  // namespace conclave

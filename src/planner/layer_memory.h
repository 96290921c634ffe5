// The tensors of a decoder layer's forward and backward, as model/mixtral_layer.cpp, moe/ and kernels/ allocate them.
#pragma once

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
    Block gate_up_RJ;
    Block hidden_rstd_T;
    Block routing;  // scores, logsumexp, weights
    Block choices;  // of experts: kept by every policy
    Block plan;     // row orders
    Block row_RH;
    Block weight_R;
    bool has_choices = false;
    bool has_attention = false;
    bool has_rows = false;
    bool has_gate_up = false;
  };

  // Both outlive this object.
  LayerMemory(const PlannedRank& rank, MemoryLedger& ledger);

  // What the stream of hidden states becomes; `state` keeps what the checkpointing policy keeps.
  Block forward(Block input_TH, const RoutedRows& rows, State& state);
  Block evaluate(Block input_TH, const RoutedRows& rows);
  Block backward(Block grad_TH, const RoutedRows& rows, State state);

  int64_t hidden_bytes() const { return tokens_ * hidden_ * item_; }
  // What the product of a weight's gradient [rows, columns] needs; it is added to what is there, or written over it.
  Block product_buffers(int64_t rows, int64_t columns, int64_t tokens, bool accumulate);
  // What an operation without a kernel of its own needs on a GPU.
  Block aten_buffers(double tensors, int64_t elements);

 private:
  Block run(const RoutedRows& rows, bool keep_gate_up, State& state);
  void compute_attention(State& state);
  void compute_dispatch(const RoutedRows& rows, State& state);
  Block experts_forward(const RoutedRows& rows, bool keep_gate_up, State& state);
  int64_t chunk_rows(const RoutedRows& rows) const;  // the most of an expert's that are computed at once
  Block combine(const RoutedRows& rows, Block row_RH);
  Block attention_buffers(MemoryCategory category, bool backward);
  Block hold(MemoryCategory category, int64_t bytes) { return ledger_.hold(category, bytes); }

  const PlannedRank& rank_;
  MemoryLedger& ledger_;
  bool alone_;  // expert degree 1: nothing travels
  int64_t tokens_, hidden_, intermediate_, heads_, query_width_, packed_width_, experts_, top_k_;
  int64_t item_;      // bytes of an element
  int64_t message_;   // bytes of a row on its way
  bool accumulates_;  // later micro-steps add to the gradients of earlier ones at once
};

}  // namespace conclave

#include "planner/layer_memory.h"

#include <algorithm>

#include "base/expert_chunk.h"
#include "base/row_message.h"
#include "planner/aten_temporaries.h"

namespace conclave {
namespace {

using enum MemoryCategory;

constexpr int64_t fp32 = 4, int32 = 4;

}  // namespace

LayerMemory::LayerMemory(const PlannedRank& rank, MemoryLedger& ledger)
    : rank_(rank),
      ledger_(ledger),
      alone_(rank.job.layout.degree(Axis::expert) == 1),
      tokens_(rank.job.tokens_per_rank()),
      hidden_(rank.job.model.hidden_size),
      intermediate_(rank.job.model.intermediate_size),
      heads_(rank.job.model.num_attention_heads),
      query_width_(heads_ * rank.job.model.head_dim),
      packed_width_(query_width_ + 2 * rank.job.model.num_key_value_heads * rank.job.model.head_dim),
      experts_(rank.job.model.num_local_experts),
      top_k_(rank.job.model.num_experts_per_tok),
      item_(rank.compute_bytes),
      message_(row_message_bytes(hidden_, item_)),
      accumulates_(rank.job.micro_steps > 1 && rank.job.layout.degree(Axis::shard) == 1) {}

// ATen's flash attention returns tensors of its own. On the CPU it has a tile of scores for each thread; on a GPU its
// backward sums in fp32 and has a key and a value for each query head. Where a GPU has no such kernel, the scores are
// whole.
LayerMemory::Block LayerMemory::attention_buffers(MemoryCategory category, bool backward) {
  const int64_t sequence = rank_.job.job.data.sequence_length, head_dim = rank_.job.model.head_dim;
  const int64_t results =
      backward ? tokens_ * packed_width_ * item_ : tokens_ * query_width_ * item_ + tokens_ * heads_ * fp32;
  if (rank_.backend == Backend::cuda_nccl) {
    const bool flash = item_ == 2 && head_dim % 8 == 0 && head_dim <= 256;
    const double scores = backward ? aten_temporaries::attention_backward : aten_temporaries::attention_forward;
    if (!flash) return aten_buffers(scores, tokens_ * heads_ * sequence);
    const int64_t sums = tokens_ * (query_width_ + heads_) * fp32 + 2 * tokens_ * query_width_ * item_;
    return hold(category, results + (backward ? sums : 0));
  }
  const int64_t queries = std::min<int64_t>(sequence, sequence >= 768 ? 256 : sequence >= 192 ? 64 : 32);
  const int64_t keys = std::min<int64_t>(sequence, 512);
  const int64_t reduced = item_ == 2 ? queries * keys * item_ : 0;
  const int64_t tiles = backward ? 2 * (queries * keys * fp32 + reduced) + queries * fp32
                                 : (queries * keys + 2 * queries + queries * head_dim) * fp32 + reduced;
  return hold(category, results + rank_.threads * tiles);
}

// A weight's gradient [rows, columns], summed over `tokens`, is a product in bf16 before it goes into fp32: whole on a
// GPU, in tiles on the CPU, where oneDNN besides copies an operand of which it gets a part of each row, and where
// adding bf16 to fp32 widens it first.
LayerMemory::Block LayerMemory::product_buffers(int64_t rows, int64_t columns, int64_t tokens, bool accumulate) {
  if (item_ == fp32) return {};
  if (rank_.backend == Backend::cuda_nccl) return hold(workspace, rows * columns * item_);
  constexpr int64_t side = 512;
  const int64_t tile = std::min(rows, side) * std::min(columns, side);
  const int64_t operands = (rows > side ? side * tokens : 0) + (columns > side ? side * tokens : 0);
  return hold(workspace, rank_.threads * (tile * item_ + std::max(operands * item_, accumulate ? tile * fp32 : 0)));
}

LayerMemory::Block LayerMemory::aten_buffers(double tensors, int64_t elements) {
  if (rank_.backend != Backend::cuda_nccl) return {};
  return hold(workspace, static_cast<int64_t>(tensors * static_cast<double>(elements * fp32)));
}

void LayerMemory::compute_attention(State& state) {
  ledger_.now_doing.part = "attention";
  const Block normed_TH = hold(workspace, hidden_bytes());
  { const Block norm = aten_buffers(aten_temporaries::rms_norm_forward, tokens_ * hidden_); }
  state.input_rstd_T = hold(activations, tokens_ * fp32);
  state.qkv_TM = hold(activations, tokens_ * packed_width_ * item_);
  state.attention_TN = hold(activations, tokens_ * query_width_ * item_);
  state.logsumexp_BNS = hold(activations, tokens_ * heads_ * fp32);
  { const Block buffers = attention_buffers(activations, /*backward=*/false); }
  state.hidden_TH = hold(activations, hidden_bytes());
  state.has_attention = true;
}

void LayerMemory::compute_dispatch(const RoutedRows& rows, State& state) {
  ledger_.now_doing.part = "dispatch";
  const Block logits_TE = hold(workspace, tokens_ * experts_ * item_);
  if (!state.has_choices) state.choices = hold(activations, tokens_ * top_k_ * int32);
  state.has_choices = true;
  state.routing = hold(activations, tokens_ * (experts_ + 1 + top_k_) * fp32);
  const int64_t sent = tokens_ * top_k_;
  state.plan = hold(activations, 3 * sent * int32 + (alone_ ? 0 : 2 * rows.received * int32));
  Block messages;
  if (!alone_) {
    Block outgoing = hold(dispatch, sent * message_);
    messages = hold(dispatch, rows.received * message_);
  }
  state.row_RH = hold(dispatch, rows.received * hidden_ * item_);
  state.weight_R = hold(dispatch, rows.received * fp32);
  state.has_rows = true;
}

int64_t LayerMemory::chunk_rows(const RoutedRows& rows) const {
  return std::min(rows.largest_expert, expert_chunk_rows);
}

LayerMemory::Block LayerMemory::experts_forward(const RoutedRows& rows, bool keep_gate_up, State& state) {
  ledger_.now_doing.part = "experts";
  const int64_t width = 2 * intermediate_ * item_, most = chunk_rows(rows);
  if (keep_gate_up) state.gate_up_RJ = hold(activations, rows.received * width);
  state.has_gate_up = keep_gate_up;
  const Block gate_up_buffer = hold(workspace, keep_gate_up ? 0 : most * width);
  const Block activation = hold(workspace, most * intermediate_ * item_);
  Block row_RH = hold(dispatch, rows.received * hidden_ * item_);
  const Block swiglu = aten_buffers(aten_temporaries::swiglu_forward, most * intermediate_);
  return row_RH;
}

LayerMemory::Block LayerMemory::combine(const RoutedRows& rows, Block row_RH) {
  ledger_.now_doing.part = "combine";
  Block out_TH = hold(activations, hidden_bytes());
  if (alone_) {
    const Block sums = aten_buffers(aten_temporaries::combine_rows, tokens_ * hidden_);
    return out_TH;
  }
  const Block outgoing = hold(dispatch, rows.received * hidden_ * item_);
  row_RH.free();
  const Block arrived = hold(dispatch, tokens_ * top_k_ * hidden_ * item_);
  const Block sums = aten_buffers(aten_temporaries::combine_rows, tokens_ * hidden_);
  return out_TH;
}

LayerMemory::Block LayerMemory::run(const RoutedRows& rows, bool keep_gate_up, State& state) {
  compute_attention(state);
  {
    const Block normed_TH = hold(workspace, hidden_bytes());
    state.hidden_rstd_T = hold(workspace, tokens_ * fp32);
    compute_dispatch(rows, state);
  }
  if (!keep_gate_up) {
    state.qkv_TM.free();
    state.attention_TN.free();
    state.logsumexp_BNS.free();
  }
  return combine(rows, experts_forward(rows, keep_gate_up, state));
}

LayerMemory::Block LayerMemory::forward(Block input_TH, const RoutedRows& rows, State& state) {
  const ActivationCheckpointing checkpointing = rank_.job.job.memory.activation_checkpointing;
  state.input_TH = std::move(input_TH);
  Block output_TH = run(rows, checkpointing == ActivationCheckpointing::none, state);
  if (checkpointing == ActivationCheckpointing::none) return output_TH;
  State kept;
  kept.input_TH = std::move(state.input_TH);
  kept.choices = std::move(state.choices);
  kept.has_choices = true;
  if (checkpointing == ActivationCheckpointing::selective) {
    kept.hidden_rstd_T = std::move(state.hidden_rstd_T);
    kept.routing = std::move(state.routing);
    kept.plan = std::move(state.plan);
    kept.row_RH = std::move(state.row_RH);
    kept.weight_R = std::move(state.weight_R);
    kept.has_rows = true;
  }
  state = std::move(kept);
  return output_TH;
}

LayerMemory::Block LayerMemory::evaluate(Block input_TH, const RoutedRows& rows) {
  State state;
  state.input_TH = std::move(input_TH);
  return run(rows, /*keep_gate_up=*/false, state);
}

LayerMemory::Block LayerMemory::backward(Block grad_TH, const RoutedRows& rows, State state) {
  if (!state.has_attention) compute_attention(state);
  if (!state.has_rows) {
    const Block normed_TH = hold(workspace, hidden_bytes());
    state.hidden_rstd_T = hold(workspace, tokens_ * fp32);
    compute_dispatch(rows, state);
  }

  Block grad_token_TH, grad_weight_TK;
  {
    ledger_.now_doing.part = "combine";
    Block grad_RH = hold(dispatch, tokens_ * top_k_ * hidden_ * item_);
    if (!alone_) {
      Block arrived = hold(dispatch, rows.received * hidden_ * item_);
      grad_RH.free();
      grad_RH = hold(dispatch, rows.received * hidden_ * item_);
    }
    ledger_.now_doing.part = "experts";
    Block grad_row_RH = std::move(state.row_RH);  // the same memory
    Block grad_weight_R = hold(workspace, rows.received * fp32);
    {
      const Block weight_R = std::move(state.weight_R);
      const Block gate_up_RJ = std::move(state.gate_up_RJ);
      const int64_t most = chunk_rows(rows);
      const Block activation = hold(workspace, most * intermediate_ * item_);
      const Block gate_up_buffer = hold(workspace, state.has_gate_up ? 0 : most * 2 * intermediate_ * item_);
      { const Block swiglu = aten_buffers(aten_temporaries::swiglu_backward, most * intermediate_); }
      const Block product =
          product_buffers(2 * intermediate_, hidden_, most, accumulates_ || rows.largest_expert > most);
    }
    grad_RH.free();
    ledger_.now_doing.part = "dispatch";
    Block arrived;
    if (!alone_) {
      const Block outgoing = hold(dispatch, rows.received * message_);
      grad_row_RH.free();
      grad_weight_R.free();
      arrived = hold(dispatch, tokens_ * top_k_ * message_);
    }
    grad_token_TH = hold(alone_ ? workspace : dispatch, hidden_bytes());
    grad_weight_TK = hold(alone_ ? workspace : dispatch, tokens_ * top_k_ * fp32);
  }
  const Block normed_TH = hold(workspace, hidden_bytes());
  const Block grad_logits_TE = hold(workspace, tokens_ * experts_ * item_);
  { const Block norm = aten_buffers(aten_temporaries::rms_norm_backward, tokens_ * hidden_); }
  grad_token_TH.free();
  grad_weight_TK.free();
  state.hidden_TH.free();

  ledger_.now_doing.part = "attention";
  Block grad_attention_TN = hold(workspace, tokens_ * query_width_ * item_);
  { const Block product = product_buffers(hidden_, query_width_, tokens_, accumulates_); }
  const Block grad_qkv_TM = hold(workspace, tokens_ * packed_width_ * item_);
  { const Block buffers = attention_buffers(workspace, /*backward=*/true); }
  grad_attention_TN.free();
  state.qkv_TM.free();
  { const Block product = product_buffers(packed_width_, hidden_, tokens_, accumulates_); }
  return grad_TH;
}

}  // namespace conclave

#include "planner/layer_memory.h"

#include <algorithm>

#include "base/cuda_rules.h"
#include "base/row_message.h"

namespace conclave {
namespace {

using enum MemoryCategory;

constexpr int64_t fp32 = 4, int32 = 4;

}  // namespace

LayerMemory::LayerMemory(const PlannedRank& rank, MemoryLedger& ledger)
    : rank_(rank),
      ledger_(ledger),
      alone_(rank.job.layout.degree(Axis::expert) == 1),
      degree_(rank.job.layout.degree(Axis::expert)),
      tokens_(rank.job.tokens_per_rank()),
      hidden_(rank.job.model.hidden_size),
      intermediate_(rank.job.model.intermediate_size),
      heads_(rank.job.model.num_attention_heads),
      query_width_(heads_ * rank.job.model.head_dim),
      packed_width_(query_width_ + 2 * rank.job.model.num_key_value_heads * rank.job.model.head_dim),
      experts_(rank.job.model.num_local_experts),
      top_k_(rank.job.model.num_experts_per_tok),
      item_(rank.compute_bytes),
      message_(row_message_bytes(hidden_, item_)) {}

LayerMemory::Block LayerMemory::attention_buffers(MemoryCategory category, bool backward) {
  if (!on_cuda()) return cpu_attention_buffers(category, backward);
  if (has_flash_kernel(rank_.job.model.head_dim, item_)) return flash_buffers(category, backward);
  return reference_attention_buffers(category, backward);
}

// Of kernels/attention_reference.cpp: fp32 tensors of all scores [B, heads, S, S], and of the heads in fp32.
LayerMemory::Block LayerMemory::reference_attention_buffers(MemoryCategory category, bool backward) {
  const int64_t scores = tokens_ * heads_ * rank_.job.job.data.sequence_length * fp32;
  const int64_t queries = tokens_ * query_width_ * fp32, keys = tokens_ * (packed_width_ - query_width_) / 2 * fp32;
  const bool widens = item_ != fp32;
  // The last product has its result, and keys (forward: values) repeated for each query head.
  const int64_t product = 2 * queries + (widens ? keys : 0);
  if (!backward) return hold(category, std::max(3 * scores, 2 * scores + product));
  return hold(category, std::max(6 * scores, 4 * scores + product) + (widens ? 2 * queries : 0));
}

// ATen's flash attention returns tensors of its own. Backward it sums the queries' gradient in fp32, in as many parts
// as it takes for a fixed order with all of a GPU's processors at work, and where query heads share a key, each has a
// gradient of it.
LayerMemory::Block LayerMemory::flash_buffers(MemoryCategory category, bool backward) {
  const int64_t results = backward ? tokens_ * packed_width_ * item_ : tokens_ * query_width_ * item_;
  if (!backward) return hold(category, results + tokens_ * heads_ * fp32);
  const auto rounded = [](int64_t count, int64_t to) { return (count + to - 1) / to * to; };
  const int64_t sequence = rank_.job.job.data.sequence_length, head_dim = rank_.job.model.head_dim;
  const int64_t batch_heads = tokens_ / sequence * heads_;
  const int64_t rows = batch_heads * rounded(sequence, 128), width = rounded(head_dim, head_dim <= 128 ? 32 : 64);
  constexpr int64_t processors = 132;  // of an H100 or H200
  const int64_t sums = (processors + batch_heads - 1) / batch_heads;
  const bool shared = heads_ != rank_.job.model.num_key_value_heads;
  const int64_t of_each_head = shared ? 2 * tokens_ * query_width_ * item_ : 0;
  return hold(category, results + rows * (width * sums + 1) * fp32 + of_each_head);
}

// Each thread has a block of scores and the fp32 matrices of its products, and backward the sums over blocks
// (kernels/attention_cpu.cpp).
LayerMemory::Block LayerMemory::cpu_attention_buffers(MemoryCategory category, bool backward) {
  const int64_t sequence = rank_.job.job.data.sequence_length, head_dim = rank_.job.model.head_dim;
  const int64_t kv_heads = rank_.job.model.num_key_value_heads, group = heads_ / kv_heads;
  const int64_t rows = group * std::min(std::clamp<int64_t>(256 / group, 32, 128), sequence);
  const int64_t keys = std::min<int64_t>(sequence, 512);
  const int64_t of_queries = rows * head_dim * item_;
  if (!backward) return hold(category, rank_.threads * (rows * (keys + head_dim + 3) * fp32 + of_queries));
  const int64_t parts = std::clamp<int64_t>(sequence / 256, 1, std::max<int64_t>(1, 16 / kv_heads));
  const int64_t sums = kv_heads * parts * 2 * sequence * head_dim;
  return hold(category, sums * fp32 + rank_.threads * (rows * (2 * keys + head_dim + 2) * fp32 + 2 * of_queries));
}

LayerMemory::Block LayerMemory::fp8_copies(int64_t elements) {
  if (!rank_.experts_in_fp8()) return {};
  return hold(workspace, elements + elements / fp8_block * fp32);
}

LayerMemory::Block LayerMemory::fp8_padding(int64_t elements) {
  if (!rank_.experts_in_fp8()) return {};
  return hold(workspace, elements * item_);
}

LayerMemory::Block LayerMemory::norm_buffers(int64_t tokens) {
  if (!on_cuda()) return {};
  return hold(workspace, norm_blocks(tokens) * hidden_ * fp32);
}

void LayerMemory::compute_attention(State& state) {
  ledger_.now_doing.part = "attention";
  const Block normed_TH = hold(workspace, hidden_bytes());
  state.input_rstd_T = hold(activations, tokens_ * fp32);
  state.qkv_TM = hold(activations, tokens_ * packed_width_ * item_);
  state.attention_TN = hold(activations, tokens_ * query_width_ * item_);
  state.logsumexp_BNS = hold(activations, tokens_ * heads_ * fp32);
  { const Block buffers = attention_buffers(activations, /*backward=*/false); }
  state.hidden_TH = hold(activations, hidden_bytes());
  state.has_attention = true;
}

void LayerMemory::compute_routing(State& state) {
  ledger_.now_doing.part = "routing";
  const Block logits_TE = hold(workspace, tokens_ * experts_ * item_);
  // With a capacity there are two: what the router chose, and what is not dropped.
  const int64_t choices = tokens_ * top_k_ * int32 * (rank_.job.job.moe.capacity_factor ? 2 : 1);
  if (!state.has_choices) state.choices = hold(activations, choices);
  state.has_choices = true;
  state.routing = hold(activations, tokens_ * (experts_ + 1 + top_k_) * fp32);
  state.has_routing = true;
}

LayerMemory::Block LayerMemory::run(const RoutedRows& rows, bool keep_gate_up, State& state) {
  compute_attention(state);
  if (!keep_gate_up) {
    state.qkv_TM.free();
    state.attention_TN.free();
    state.logsumexp_BNS.free();
  }
  Block normed_TH = hold(workspace, hidden_bytes());
  state.hidden_rstd_T = hold(workspace, tokens_ * fp32);
  compute_routing(state);
  return routed_forward(std::move(normed_TH), rows, keep_gate_up, state);
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
    kept.has_routing = true;
    kept.parts = std::move(state.parts);
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
  Block tokens;
  if (needs_tokens(state)) {
    tokens = hold(workspace, hidden_bytes());
    if (!state.has_routing) {
      state.hidden_rstd_T = hold(workspace, tokens_ * fp32);
      compute_routing(state);
    }
  }
  DispatchGradient grad = routed_backward(std::move(tokens), rows, state);
  const Block normed_TH = hold(workspace, hidden_bytes());
  const Block grad_logits_TE = hold(workspace, tokens_ * experts_ * item_);
  { const Block norm = norm_buffers(tokens_); }
  grad = {};
  state.hidden_TH.free();

  ledger_.now_doing.part = "attention";
  Block grad_attention_TN = hold(workspace, tokens_ * query_width_ * item_);
  const Block grad_qkv_TM = hold(workspace, tokens_ * packed_width_ * item_);
  { const Block buffers = attention_buffers(workspace, /*backward=*/true); }
  grad_attention_TN.free();
  state.qkv_TM.free();
  return grad_TH;
}

}  // namespace conclave

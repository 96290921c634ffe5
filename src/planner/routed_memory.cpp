// The tensors of moe/routed_experts.cpp, the dispatchers and the experts.
#include <algorithm>

#include "base/cuda_rules.h"
#include "base/expert_chunk.h"
#include "planner/layer_memory.h"

namespace conclave {
namespace {

using enum MemoryCategory;

constexpr int64_t fp32 = 4, int32 = 4;

}  // namespace

int64_t LayerMemory::tokens_of(size_t part) const {
  const auto parts = static_cast<int64_t>(parts_.size()), i = static_cast<int64_t>(part);
  return tokens_ * (i + 1) / parts - tokens_ * i / parts;
}

int64_t LayerMemory::chunk_rows(const RoutedRows& rows) const {
  return std::min(rows.largest_expert, on_cuda() ? expert_chunk_rows_on_cuda : expert_chunk_rows);
}

// Experts that are lent keep to the loop; a plan lends none.
bool LayerMemory::groups(const RoutedRows& rows) const {
  return on_cuda() && !rank_.experts_in_fp8() &&
         groups_products(rows.received, experts_ / degree_, hidden_, intermediate_, item_);
}

bool LayerMemory::needs_tokens(const State& state) const {
  for (const State::Part& part : state.parts)
    if (!part.has_rows) return true;
  return state.parts.empty();
}

void LayerMemory::plan_parts(State& state) {
  for (size_t part = 0; part < parts_.size(); ++part) {
    const RoutedRows& rows = parts_[part];
    const int64_t own = shuffles() ? 2 * tokens_of(part) : 0;
    const int64_t orders = gathers() ? degree_ * choices_of(part) + 2 * rows.received
                           : alone_  ? 3 * rows.sent
                                     : choices_of(part) + 2 * rows.sent + 2 * rows.received;
    state.parts.emplace_back().plan = hold(activations, (own + orders) * int32);
  }
}

// Tokens after they changed ranks; what is sent is gone by then.
LayerMemory::Block LayerMemory::shuffled(size_t part, int64_t bytes_of_token) {
  const Block sent = hold(dispatch, tokens_of(part) * bytes_of_token);
  return hold(dispatch, tokens_of(part) * bytes_of_token);
}

LayerMemory::Flight LayerMemory::gathered(size_t part, bool with_weights) {
  Flight flight;
  flight.arrived = hold(dispatch, degree_ * tokens_of(part) * hidden_ * item_);
  if (with_weights) flight.weights = hold(dispatch, degree_ * choices_of(part) * fp32);
  return flight;
}

LayerMemory::Flight LayerMemory::begin_dispatch(size_t part, State::Part& state) {
  ledger_.now_doing.part = "dispatch";
  Block token, weight;
  if (shuffles()) {
    token = shuffled(part, hidden_ * item_);
    weight = shuffled(part, top_k_ * fp32);
  }
  Flight flight;
  if (gathers()) {
    flight = gathered(part, /*with_weights=*/true);
  } else if (!alone_) {
    flight.sent = hold(dispatch, parts_[part].sent * message_);
    flight.arrived = hold(dispatch, parts_[part].received * message_);
  } else {
    state.row_RH = hold(dispatch, parts_[part].received * hidden_ * item_);
    state.weight_R = hold(dispatch, parts_[part].received * fp32);
  }
  return flight;
}

void LayerMemory::finish_dispatch(size_t part, Flight& flight, State::Part& state) {
  flight.sent.free();
  if (!alone_) {
    state.row_RH = hold(dispatch, parts_[part].received * hidden_ * item_);
    state.weight_R = hold(dispatch, parts_[part].received * fp32);
  }
  state.has_rows = true;
  flight = {};
}

LayerMemory::Block LayerMemory::experts_forward(size_t part, bool keep_gate_up, State::Part& state) {
  ledger_.now_doing.part = "experts";
  const RoutedRows& rows = parts_[part];
  if (groups(rows)) return grouped_experts_forward(rows, keep_gate_up, state);
  const int64_t width = 2 * intermediate_ * item_, most = chunk_rows(rows);
  if (keep_gate_up) state.gate_up_RJ = hold(activations, rows.received * width);
  state.has_gate_up = keep_gate_up;
  const Block gate_up_buffer = hold(workspace, keep_gate_up ? 0 : most * width);
  const Block activation = hold(workspace, most * intermediate_ * item_);
  Block row_RH = hold(dispatch, rows.received * hidden_ * item_);
  const Block weights = fp8_copies(expert_elements());
  {
    const Block input = fp8_copies(most * hidden_);
    const Block product = fp8_padding(most * 2 * intermediate_);
  }
  const Block activation_copy = fp8_copies(most * intermediate_);
  const Block product = fp8_padding(most * hidden_);
  return row_RH;
}

LayerMemory::Block LayerMemory::grouped_experts_forward(const RoutedRows& rows, bool keep_gate_up, State::Part& state) {
  Block gate_up_RJ = hold(activations, rows.received * 2 * intermediate_ * item_);
  const Block activation_RI = hold(workspace, rows.received * intermediate_ * item_);
  state.has_gate_up = keep_gate_up;
  if (keep_gate_up)
    state.gate_up_RJ = std::move(gate_up_RJ);
  else
    gate_up_RJ.free();
  return hold(dispatch, rows.received * hidden_ * item_);
}

// What a reduce-scatter leaves of `bytes` on each rank; Gloo's ranks receive into buffers of their own before they sum.
LayerMemory::Block LayerMemory::reduced(int64_t bytes, Flight& flight) {
  if (rank_.backend == Backend::cpu_gloo) flight.staged = hold(dispatch, flight.staged.bytes() + (degree_ - 1) * bytes);
  return hold(dispatch, bytes);
}

LayerMemory::Flight LayerMemory::begin_combine(size_t part, Block row_RH) {
  ledger_.now_doing.part = "combine";
  Flight flight;
  if (alone_) {
    flight.sent = std::move(row_RH);
  } else if (gathers()) {
    flight.sent = hold(dispatch, degree_ * tokens_of(part) * hidden_ * item_);
    row_RH.free();
    flight.arrived = reduced(tokens_of(part) * hidden_ * item_, flight);
  } else {
    flight.sent = hold(dispatch, parts_[part].received * hidden_ * item_);
    row_RH.free();
    flight.arrived = hold(dispatch, parts_[part].sent * hidden_ * item_);
  }
  return flight;
}

void LayerMemory::finish_combine(size_t part, Flight& flight) {
  Block sum;
  if (shuffles()) sum = hold(dispatch, tokens_of(part) * hidden_ * item_);
  if (!alone_) flight.sent.free();
  flight.staged.free();
  flight = {};
  if (shuffles()) const Block back = shuffled(part, hidden_ * item_);
}

LayerMemory::Block LayerMemory::routed_forward(Block tokens, const RoutedRows& rows, bool keep_gate_up, State& state) {
  parts_ = parts_of(rank_.job, rows);
  plan_parts(state);
  const bool overlap = parts_overlap(rank_.job) && parts_.size() > 1, drop_rows = !overlap && parts_.size() > 1;
  Block out_TH;
  std::vector<Flight> dispatching(parts_.size()), combining(parts_.size());
  const auto start = [&](size_t part) {
    if (part == parts_.size()) return;
    dispatching[part] = begin_dispatch(part, state.parts[part]);
    if (part + 1 == parts_.size()) tokens.free();
  };
  if (overlap) start(0);
  for (size_t part = 0; part < parts_.size(); ++part) {
    State::Part& of = state.parts[part];
    start(overlap ? part + 1 : part);
    finish_dispatch(part, dispatching[part], of);
    Block row_RH = experts_forward(part, keep_gate_up && !drop_rows, of);
    if (drop_rows) {
      of.row_RH.free();
      of.weight_R.free();
      of.has_rows = false;
    }
    if (part == 0) out_TH = hold(activations, hidden_bytes());
    combining[part] = begin_combine(part, std::move(row_RH));
    if (!overlap)
      finish_combine(part, combining[part]);
    else if (part > 0)
      finish_combine(part - 1, combining[part - 1]);
  }
  if (overlap) finish_combine(parts_.size() - 1, combining.back());
  return out_TH;
}

LayerMemory::Flight LayerMemory::begin_combine_backward(size_t part) {
  ledger_.now_doing.part = "combine";
  const int64_t row = hidden_ * item_;
  Block token;
  if (shuffles()) token = shuffled(part, row);
  if (gathers()) return gathered(part, /*with_weights=*/false);
  Flight flight;
  flight.sent = hold(dispatch, parts_[part].sent * row);
  if (!alone_) flight.arrived = hold(dispatch, parts_[part].received * row);
  return flight;
}

LayerMemory::Block LayerMemory::finish_combine_backward(size_t part, Flight& flight) {
  if (alone_) return std::move(flight.sent);
  flight.sent.free();
  Block grad_RH = hold(dispatch, parts_[part].received * hidden_ * item_);
  flight = {};
  return grad_RH;
}

LayerMemory::ExpertRowGradient LayerMemory::experts_backward(const RoutedRows& rows, State::Part& state) {
  ExpertRowGradient grad{std::move(state.row_RH), hold(workspace, rows.received * fp32)};  // over the rows themselves
  const Block weight_R = std::move(state.weight_R);
  const Block gate_up_RJ = std::move(state.gate_up_RJ);
  const int64_t most = chunk_rows(rows);
  const Block activation = hold(workspace, most * intermediate_ * item_);
  const Block gate_up_buffer = hold(workspace, state.has_gate_up ? 0 : most * 2 * intermediate_ * item_);
  if (!rank_.experts_in_fp8()) return grad;
  const Block weights = fp8_copies(expert_elements() + (state.has_gate_up ? 0 : 2 * hidden_ * intermediate_));
  { const Block operands = fp8_copies(most * (2 * intermediate_ + hidden_)); }  // of gate_up's gradient
  const Block grad_gate_up = fp8_copies(most * 2 * intermediate_);
  const Block product = fp8_padding(most * hidden_);
  return grad;
}

LayerMemory::ExpertRowGradient LayerMemory::grouped_experts_backward(const RoutedRows& rows, State::Part& state) {
  const Block row_RH = std::move(state.row_RH);
  const Block weight_R = std::move(state.weight_R);
  Block gate_up_RJ = std::move(state.gate_up_RJ);
  if (!state.has_gate_up) gate_up_RJ = hold(workspace, rows.received * 2 * intermediate_ * item_);
  ExpertRowGradient grad{{}, hold(workspace, rows.received * fp32)};
  { const Block activation_RI = hold(workspace, rows.received * intermediate_ * item_); }
  grad.row_RH = hold(workspace, rows.received * hidden_ * item_);
  return grad;
}

LayerMemory::Flight LayerMemory::experts_and_dispatch_backward(size_t part, Block grad_RH, State::Part& state) {
  ledger_.now_doing.part = "experts";
  const RoutedRows& rows = parts_[part];
  ExpertRowGradient grad = groups(rows) ? grouped_experts_backward(rows, state) : experts_backward(rows, state);
  grad_RH.free();
  ledger_.now_doing.part = "dispatch";
  Flight flight;
  if (alone_) {
    flight.sent = std::move(grad.row_RH);
    flight.weights = std::move(grad.weight_R);
  } else if (gathers()) {
    flight.sent = hold(dispatch, degree_ * tokens_of(part) * hidden_ * item_);
    flight.weights = hold(dispatch, degree_ * choices_of(part) * fp32);
    grad = {};
    flight.arrived = reduced(tokens_of(part) * (hidden_ * item_ + top_k_ * fp32), flight);
  } else {
    flight.sent = hold(dispatch, rows.received * message_);
    grad = {};
    flight.arrived = hold(dispatch, rows.sent * message_);
  }
  return flight;
}

void LayerMemory::finish_dispatch_backward(size_t part, Flight& flight) {
  Block token, weight;
  if (shuffles()) {
    token = hold(dispatch, tokens_of(part) * hidden_ * item_);
    weight = hold(dispatch, choices_of(part) * fp32);
  }
  flight = {};
  if (shuffles()) const Block back = shuffled(part, hidden_ * item_);
}

LayerMemory::DispatchGradient LayerMemory::routed_backward(Block tokens, const RoutedRows& rows, State& state) {
  parts_ = parts_of(rank_.job, rows);
  if (state.parts.empty()) plan_parts(state);
  const bool overlap = parts_overlap(rank_.job) && parts_.size() > 1;
  DispatchGradient result;
  std::vector<Flight> dispatching(parts_.size()), arriving(parts_.size()), returning(parts_.size());
  const auto start = [&](size_t part) {
    if (part == parts_.size()) return;
    State::Part& of = state.parts[part];
    if (!of.has_rows) dispatching[part] = begin_dispatch(part, of);
    if (part + 1 == parts_.size()) tokens.free();
    if (!of.has_rows && !overlap) finish_dispatch(part, dispatching[part], of);
    arriving[part] = begin_combine_backward(part);
  };
  const auto finish = [&](size_t part) {
    if (part == 0) {
      result.token_TH = hold(dispatch, hidden_bytes());
      result.weight_TK = hold(dispatch, tokens_ * top_k_ * fp32);
    }
    finish_dispatch_backward(part, returning[part]);
  };
  if (overlap) start(0);
  for (size_t part = 0; part < parts_.size(); ++part) {
    State::Part& of = state.parts[part];
    start(overlap ? part + 1 : part);
    if (!of.has_rows) finish_dispatch(part, dispatching[part], of);
    Block grad_RH = finish_combine_backward(part, arriving[part]);
    returning[part] = experts_and_dispatch_backward(part, std::move(grad_RH), of);
    if (!overlap)
      finish(part);
    else if (part > 0)
      finish(part - 1);
  }
  if (overlap) finish(parts_.size() - 1);
  return result;
}

}  // namespace conclave

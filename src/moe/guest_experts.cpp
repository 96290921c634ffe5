#include "moe/guest_experts.h"

#include <ATen/ATen.h>

#include "memory/memory_category.h"

namespace conclave {
namespace {

int64_t elements_of_one(const at::Tensor& stack) {
  return stack.size(1) * stack.size(2);
}

int64_t elements_of_expert(const ExpertWeights& weights) {
  return elements_of_one(weights.gate_up_LJH) + elements_of_one(weights.down_LHI);
}

// Experts that travel from a rank's own to each helper, and to it from each lender.
struct Splits {
  std::vector<int64_t> lent, guests;
};

Splits splits_of(const SpillPlan& spill, const Communicator& expert) {
  Splits splits{std::vector<int64_t>(static_cast<size_t>(expert.size())),
                std::vector<int64_t>(static_cast<size_t>(expert.size()))};
  for (const SpillPlan::Loan& loan : spill.loans_of(expert.rank(), expert.size())) ++splits.lent[loan.helper];
  for (const int64_t guest : spill.guests_of(expert.rank())) ++splits.guests[spill.home_of(guest)];
  return splits;
}

int64_t sum(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

// The two matrices of each expert of a message [G,N], as stacks.
struct Stacks {
  at::Tensor gate_up_GJH, down_GHI;
};
Stacks stacks_of(const at::Tensor& message_GN, const at::Tensor& gate_up_LJH, const at::Tensor& down_LHI) {
  const int64_t count = message_GN.size(0), gate_up = elements_of_one(gate_up_LJH);
  return {message_GN.narrow(1, 0, gate_up).view({count, gate_up_LJH.size(1), gate_up_LJH.size(2)}),
          message_GN.narrow(1, gate_up, elements_of_one(down_LHI)).view({count, down_LHI.size(1), down_LHI.size(2)})};
}

RowsInFlight send_weights(const SpillPlan& spill, const ExpertWeights& own, at::ScalarType dtype, Communicator& expert,
                          StepClock& clock) {
  MemoryScope scope(MemoryCategory::dispatch);
  const Splits splits = splits_of(spill, expert);
  at::Tensor lent = at::empty({sum(splits.lent), elements_of_expert(own)}, own.down_LHI.options().dtype(dtype));
  const Stacks to = stacks_of(lent, own.gate_up_LJH, own.down_LHI);
  int64_t place = 0;
  for (const SpillPlan::Loan& loan : spill.loans_of(expert.rank(), expert.size())) {
    const int64_t local = loan.expert % spill.experts_per_rank;
    to.gate_up_GJH[place].copy_(own.gate_up_LJH[local]);
    to.down_GHI[place++].copy_(own.down_LHI[local]);
  }
  at::Tensor guests = at::empty({sum(splits.guests), lent.size(1)}, lent.options());
  Pending pending = expert.all_to_all(guests, lent, splits.guests, splits.lent);
  return RowsInFlight(std::move(guests), std::move(lent), std::move(pending), clock);
}

}  // namespace

GuestWeights::GuestWeights(const SpillPlan& spill, const ExpertWeights& own, at::ScalarType dtype, Communicator& expert,
                           StepClock& clock)
    : own_(own), in_flight_(send_weights(spill, own, dtype, expert, clock)) {}

ExpertWeights GuestWeights::finish() {
  const Stacks guests = stacks_of(in_flight_.take(), own_.gate_up_LJH, own_.down_LHI);
  own_.guest_gate_up_GJH = guests.gate_up_GJH;
  own_.guest_down_GHI = guests.down_GHI;
  return std::move(own_);
}

GuestGradients::GuestGradients(const SpillPlan& spill, const ExpertWeights& own, Communicator& expert, StepClock& clock)
    : spill_(spill), expert_(expert), clock_(clock) {
  MemoryScope scope(MemoryCategory::dispatch);
  const auto guests = static_cast<int64_t>(spill.guests_of(expert.rank()).size());
  guest_GN_ = at::empty({guests, elements_of_expert(own)}, own.down_LHI.options().dtype(at::kFloat));
}

ExpertGradients GuestGradients::with_guests(const ExpertGradients& own) const {
  ExpertGradients gradients = own;
  const Stacks guests = stacks_of(guest_GN_, own.gate_up_LJH.tensor, own.down_LHI.tensor);
  gradients.guest_gate_up_GJH = {guests.gate_up_GJH};
  gradients.guest_down_GHI = {guests.down_GHI};
  return gradients;
}

void GuestGradients::send() {
  MemoryScope scope(MemoryCategory::dispatch);
  const Splits splits = splits_of(spill_, expert_);
  at::Tensor home = at::empty({sum(splits.lent), guest_GN_.size(1)}, guest_GN_.options());
  Pending pending = expert_.all_to_all(home, guest_GN_, splits.lent, splits.guests);
  in_flight_.emplace(std::move(home), std::move(guest_GN_), std::move(pending), clock_);
}

void GuestGradients::add_to(ExpertGradients& own) {
  const Stacks home = stacks_of(in_flight_->take(), own.gate_up_LJH.tensor, own.down_LHI.tensor);
  int64_t place = 0;
  for (const SpillPlan::Loan& loan : spill_.loans_of(expert_.rank(), expert_.size())) {
    const int64_t local = loan.expert % spill_.experts_per_rank;
    own.gate_up_LJH.tensor[local].add_(home.gate_up_GJH[place]);
    own.down_LHI.tensor[local].add_(home.down_GHI[place++]);
  }
}

}  // namespace conclave

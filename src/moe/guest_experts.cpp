#include "moe/guest_experts.h"

#include <ATen/ATen.h>

#include "memory/memory_category.h"

namespace conclave {
namespace {

// An expert's parameters, each with those of all experts.
std::vector<at::Tensor> stacks_of(ExpertWeights& weights) {
  std::vector<at::Tensor> stacks;
  for (const auto& part : weights.parts()) stacks.push_back(*part.own);
  return stacks;
}

std::vector<at::Tensor> stacks_of(ExpertGradients& gradients) {
  std::vector<at::Tensor> stacks;
  for (const auto& gradient : gradients.wanted()) stacks.push_back(gradient.own->tensor);
  return stacks;
}

int64_t elements_of_one(const at::Tensor& stack) {
  int64_t elements = 1;
  for (const int64_t size : stack.sizes().slice(1)) elements *= size;
  return elements;
}

int64_t elements_of_expert(const std::vector<at::Tensor>& stacks) {
  int64_t elements = 0;
  for (const at::Tensor& stack : stacks) elements += elements_of_one(stack);
  return elements;
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

// The parameters of each expert of a message [G,N], as stacks like these.
std::vector<at::Tensor> in_message(const at::Tensor& message_GN, const std::vector<at::Tensor>& like) {
  std::vector<at::Tensor> stacks;
  int64_t begin = 0;
  for (const at::Tensor& stack : like) {
    std::vector<int64_t> sizes = stack.sizes().vec();
    sizes[0] = message_GN.size(0);
    stacks.push_back(message_GN.narrow(1, begin, elements_of_one(stack)).view(sizes));
    begin += elements_of_one(stack);
  }
  return stacks;
}

RowsInFlight send_weights(const SpillPlan& spill, ExpertWeights own, at::ScalarType dtype, Communicator& expert,
                          StepClock& clock) {
  MemoryScope scope(MemoryCategory::dispatch);
  const Splits splits = splits_of(spill, expert);
  const std::vector<at::Tensor> from = stacks_of(own);
  at::Tensor lent = at::empty({sum(splits.lent), elements_of_expert(from)}, own.down_LHI.options().dtype(dtype));
  const std::vector<at::Tensor> to = in_message(lent, from);
  int64_t place = 0;
  for (const SpillPlan::Loan& loan : spill.loans_of(expert.rank(), expert.size())) {
    const int64_t local = loan.expert % spill.experts_per_rank;
    for (size_t i = 0; i < to.size(); ++i) to[i][place].copy_(from[i][local]);
    ++place;
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
  const std::vector<ExpertWeights::OwnAndGuests> parts = own_.parts();
  const std::vector<at::Tensor> guests = in_message(in_flight_.take(), stacks_of(own_));
  for (size_t i = 0; i < parts.size(); ++i) *parts[i].guests = guests[i];
  return std::move(own_);
}

GuestGradients::GuestGradients(const SpillPlan& spill, ExpertGradients own, Communicator& expert, StepClock& clock)
    : spill_(spill), expert_(expert), clock_(clock) {
  MemoryScope scope(MemoryCategory::dispatch);
  const auto guests = static_cast<int64_t>(spill.guests_of(expert.rank()).size());
  const std::vector<at::Tensor> like = stacks_of(own);
  guest_GN_ = at::empty({guests, elements_of_expert(like)}, like.front().options().dtype(at::kFloat));
}

ExpertGradients GuestGradients::with_guests(const ExpertGradients& own) const {
  ExpertGradients gradients = own;
  const std::vector<ExpertGradients::OwnAndGuests> wanted = gradients.wanted();
  const std::vector<at::Tensor> guests = in_message(guest_GN_, stacks_of(gradients));
  for (size_t i = 0; i < wanted.size(); ++i) *wanted[i].guests = {guests[i]};
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
  const std::vector<at::Tensor> to = stacks_of(own), home = in_message(in_flight_->take(), to);
  int64_t place = 0;
  for (const SpillPlan::Loan& loan : spill_.loans_of(expert_.rank(), expert_.size())) {
    const int64_t local = loan.expert % spill_.experts_per_rank;
    for (size_t i = 0; i < to.size(); ++i) to[i][local].add_(home[i][place]);
    ++place;
  }
}

}  // namespace conclave

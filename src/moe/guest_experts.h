// What lending experts costs: their weights travel to the helpers, and the gradients of the weights come home. One
// message per lender and helper holds all experts lent, each as gate_up, down and, where it has them, biases and
// adapters, one behind the other; of gradients those that are wanted.
#pragma once

#include "moe/experts.h"
#include "moe/rows_in_flight.h"

namespace conclave {

// The weights of this rank's guests on their way: starts with the object. Collective over `expert`; like all that is
// here only for a plan whose `spill` lends something, which is so on all ranks or on none.
class GuestWeights {
 public:
  // They travel in `dtype`, the rows'. `expert` and `clock` outlive the object.
  GuestWeights(const SpillPlan& spill, const ExpertWeights& own, at::ScalarType dtype, Communicator& expert,
               StepClock& clock);
  // `own` with the guests that arrived, which are views of one buffer.
  ExpertWeights finish();

 private:
  ExpertWeights own_;
  RowsInFlight in_flight_;
};

// Room for the gradients of this rank's guests, zero rows of it if there are none.
class GuestGradients {
 public:
  // `own`: one of them is wanted at least.
  GuestGradients(const SpillPlan& spill, ExpertGradients own, Communicator& expert, StepClock& clock);
  // `own` with places for the guests' gradients, to be written.
  ExpertGradients with_guests(const ExpertGradients& own) const;
  // Starts them on their way home.
  void send();
  // Adds what helpers send to `own`, in the order of the helpers.
  void add_to(ExpertGradients& own);

 private:
  SpillPlan spill_;
  Communicator& expert_;
  StepClock& clock_;
  at::Tensor guest_GN_;  // fp32
  std::optional<RowsInFlight> in_flight_;
};

}  // namespace conclave

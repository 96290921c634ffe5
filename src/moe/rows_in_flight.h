// Rows between ranks: what is sent stays until take(), which waits for what arrives.
#pragma once

#include <ATen/core/Tensor.h>

#include "base/step_clock.h"
#include "comm/communicator.h"

namespace conclave {

class RowsInFlight {
 public:
  // `arrived` is being filled from what was `sent`. `clock` outlives the object.
  RowsInFlight(at::Tensor arrived, at::Tensor sent, Pending pending, StepClock& clock)
      : arrived_(std::move(arrived)), sent_(std::move(sent)), pending_(std::move(pending)), clock_(clock) {}

  at::Tensor take() {
    const ClockScope scope(clock_, Phase::dispatch);
    pending_.wait();
    clock_.add_in_flight(Phase::dispatch, since_);
    sent_.reset();
    return std::move(arrived_);
  }

 private:
  at::Tensor arrived_, sent_;
  Pending pending_;
  StepClock& clock_;
  StepClock::Time since_ = clock_.now();
};

}  // namespace conclave

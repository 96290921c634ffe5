// Where the time of a rank's steps goes. The clock is in one phase of one unit at a time; scopes move it there and
// back, so no second is counted twice and the times add up. It reads the host's time: work that a device does by itself
// counts where the host waits for it (see `settle`).
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <vector>

namespace conclave {

enum class Phase : int {
  computing,  // what is none of the others
  // Of computing, the kernels by kind; only where they are asked for (time_kernels).
  products,   // matrix products
  attention,  // scores and their softmax, without the projections
  permute,    // rows put into another order
  kernels,    // all others
  gather,     // waiting for parameters of other ranks
  reduce,     // waiting for sums of gradients and statistics over the ranks
  dispatch,   // waiting for routed rows
  offload,    // waiting for layer inputs on their way to the host or back
  optimizer,
  data,  // waiting for the next batch
};
inline constexpr int phases = 11;

const char* name_of(Phase phase);

// Told where named ranges begin and end, by the thread that computes; ranges nest. What a profiler shows.
class RangeListener {
 public:
  virtual ~RangeListener() = default;
  // `unit`: the unit that it is of, or the whole step.
  virtual void begin(const char* name, size_t unit) = 0;
  virtual void end() = 0;
};

// What a clock shows instead of the time of day: of a step on paper, the seconds that its costs add up to.
class TimeSource {
 public:
  virtual ~TimeSource() = default;
  virtual std::chrono::steady_clock::time_point now() const = 0;
};

class StepClock {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // Times of units 0 .. units - 1, and of the step as a whole. `source` outlives the clock; null: the time of day.
  explicit StepClock(size_t units, const TimeSource* source = nullptr);
  StepClock(const StepClock&) = delete;
  ~StepClock();

  // What is the step's own: neither of a unit nor lost.
  size_t whole_step() const { return times_.size() - 1; }

  struct Times {
    std::array<double, phases> seconds{};
    // From the start of a collective to the end of the wait for it, summed over collectives. Less what was waited for,
    // it was hidden behind other work.
    std::array<double, phases> in_flight{};
  };
  Time now() const { return source_ == nullptr ? std::chrono::steady_clock::now() : source_->now(); }

  // By unit, and behind them the whole step's own, since the last call.
  std::vector<Times> take();

  void add_in_flight(Phase phase, size_t unit, Time start);
  void add_in_flight(Phase phase, Time start);  // of the unit that the clock is in

  // Called where a phase ends. On a device that works by itself it waits for the device, so that times are the work's
  // own; that costs speed, so training does without.
  void set_settle(std::function<void()> settle) { settle_ = std::move(settle); }

  // From now on every scope is a range for `listener`, which outlives the clock or is taken back; null: none is.
  // Between scopes.
  void set_listener(RangeListener* listener) { listener_ = listener; }

  // From now on the kernels that this thread calls are phases of their own (KernelScope).
  void time_kernels();

 private:
  friend class ClockScope;
  friend class KernelScope;
  friend class RangeScope;
  struct Place {
    Phase phase;
    size_t unit;
  };
  void move_to(std::optional<Place> place);
  size_t unit() const { return place_ ? place_->unit : whole_step(); }

  const TimeSource* source_;
  std::vector<Times> times_;
  std::optional<Place> place_;  // none: the time is nobody's
  Time since_;
  std::function<void()> settle_;
  RangeListener* listener_ = nullptr;
};

// The clock is in `phase` while the scope lives, then where it was. Scopes nest.
class ClockScope {
 public:
  ClockScope(StepClock& clock, Phase phase, size_t unit);
  // Of the unit that the clock is in.
  ClockScope(StepClock& clock, Phase phase);
  ~ClockScope();
  ClockScope(const ClockScope&) = delete;

 private:
  StepClock& clock_;
  std::optional<StepClock::Place> outer_;
  RangeListener* listener_;
};

// A part of computing that has a name of its own where ranges are shown, and no time of its own.
class RangeScope {
 public:
  RangeScope(StepClock& clock, const char* name);
  ~RangeScope();
  RangeScope(const RangeScope&) = delete;

 private:
  RangeListener* listener_;
};

// In a kernel: while it lives, the clock that times this thread's kernels, if there is one, is in `kind`. Kernels of a
// phase that is no computing (of the optimizer) stay in that phase, and a kernel within another one is its own kind.
class KernelScope {
 public:
  explicit KernelScope(Phase kind);
  ~KernelScope();
  KernelScope(const KernelScope&) = delete;

 private:
  StepClock* clock_;  // null: not timed
  std::optional<StepClock::Place> outer_;
};

double total_seconds(const std::vector<StepClock::Times>& times, Phase phase);

}  // namespace conclave

#include "base/step_clock.h"

namespace conclave {
namespace {

double seconds_between(StepClock::Time start, StepClock::Time end) {
  return std::chrono::duration<double>(end - start).count();
}

thread_local StepClock* clock_of_kernels = nullptr;

}  // namespace

const char* name_of(Phase phase) {
  static constexpr std::array<const char*, phases> names = {"computing", "products",  "attention", "permute",
                                                            "kernels",   "gather",    "reduce",    "dispatch",
                                                            "offload",   "optimizer", "data"};
  return names[static_cast<size_t>(phase)];
}

StepClock::StepClock(size_t units, const TimeSource* source) : source_(source), times_(units + 1) {}

StepClock::~StepClock() {
  if (clock_of_kernels == this) clock_of_kernels = nullptr;
}

void StepClock::time_kernels() {
  clock_of_kernels = this;
}

std::vector<StepClock::Times> StepClock::take() {
  std::vector<Times> taken(times_.size());
  times_.swap(taken);
  return taken;
}

void StepClock::add_in_flight(Phase phase, size_t unit, Time start) {
  times_.at(unit).in_flight[static_cast<size_t>(phase)] += seconds_between(start, now());
}

void StepClock::add_in_flight(Phase phase, Time start) {
  add_in_flight(phase, unit(), start);
}

void StepClock::move_to(std::optional<Place> place) {
  if (settle_ && place_) settle_();
  const Time time = now();
  if (place_) times_.at(place_->unit).seconds[static_cast<size_t>(place_->phase)] += seconds_between(since_, time);
  place_ = place;
  since_ = time;
}

ClockScope::ClockScope(StepClock& clock, Phase phase, size_t unit)
    : clock_(clock), outer_(clock.place_), listener_(clock.listener_) {
  clock_.move_to(StepClock::Place{phase, unit});
  if (listener_ != nullptr) listener_->begin(name_of(phase), unit);
}

ClockScope::ClockScope(StepClock& clock, Phase phase) : ClockScope(clock, phase, clock.unit()) {}

ClockScope::~ClockScope() {
  if (listener_ != nullptr) listener_->end();
  clock_.move_to(outer_);
}

RangeScope::RangeScope(StepClock& clock, const char* name) : listener_(clock.listener_) {
  if (listener_ != nullptr) listener_->begin(name, clock.unit());
}

RangeScope::~RangeScope() {
  if (listener_ != nullptr) listener_->end();
}

KernelScope::KernelScope(Phase kind) : clock_(clock_of_kernels) {
  if (clock_ == nullptr) return;
  outer_ = clock_->place_;
  if (!outer_ || outer_->phase > Phase::kernels) clock_ = nullptr;
  if (clock_ != nullptr) clock_->move_to(StepClock::Place{kind, outer_->unit});
}

KernelScope::~KernelScope() {
  if (clock_ != nullptr) clock_->move_to(outer_);
}

double total_seconds(const std::vector<StepClock::Times>& times, Phase phase) {
  double sum = 0;
  for (const StepClock::Times& of_unit : times) sum += of_unit.seconds[static_cast<size_t>(phase)];
  return sum;
}

}  // namespace conclave

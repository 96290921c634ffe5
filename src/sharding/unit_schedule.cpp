#include "sharding/unit_schedule.h"

#include <algorithm>

#include "base/error.h"

namespace conclave {
namespace {

// Adds the seconds it lives to `sum`.
class Stopwatch {
 public:
  explicit Stopwatch(double& sum) : sum_(sum) {}
  ~Stopwatch() { sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  double& sum_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

UnitSchedule::UnitSchedule(std::vector<Unit*> units, ScheduleOptions options)
    : units_(std::move(units)), options_(options) {}

void UnitSchedule::start(std::vector<size_t> visits) {
  check_invariant(cursor_ == visits_.size(), "a micro-step ended after {} of {} unit visits", cursor_, visits_.size());
  visits_ = std::move(visits);
  cursor_ = 0;
}

void UnitSchedule::prefetch() {
  const size_t end = std::min(visits_.size(), cursor_ + static_cast<size_t>(options_.prefetch_units));
  for (size_t i = cursor_; i < end; ++i) units_[visits_[i]]->begin_unshard();
}

Unit& UnitSchedule::begin(size_t unit) {
  check_invariant(cursor_ < visits_.size() && visits_[cursor_] == unit, "unit {} is used out of its turn",
                  units_[unit]->name());
  ++cursor_;
  units_[unit]->begin_unshard();
  prefetch();
  Stopwatch stopwatch(waiting_.gather);
  units_[unit]->finish_unshard();
  return *units_[unit];
}

bool UnitSchedule::needed_soon(size_t unit) const {
  const auto from = visits_.begin() + static_cast<std::ptrdiff_t>(cursor_);
  const auto ahead = options_.reshard_after_forward
                         ? std::min<std::ptrdiff_t>(visits_.end() - from, options_.prefetch_units + 1)
                         : visits_.end() - from;
  return std::find(from, from + ahead, unit) != from + ahead;
}

void UnitSchedule::end(size_t unit) {
  if (!needed_soon(unit)) units_[unit]->reshard();
}

void UnitSchedule::reduce(size_t unit, bool first_micro_step, bool last_micro_step) {
  {
    Stopwatch stopwatch(waiting_.reduce);
    while (reducing_.size() >= 1) {
      units_[reducing_.front()]->finish_reduce();
      reducing_.erase(reducing_.begin());
    }
  }
  units_[unit]->begin_reduce(first_micro_step, last_micro_step);
  reducing_.push_back(unit);
}

void UnitSchedule::finish() {
  Stopwatch stopwatch(waiting_.reduce);
  for (size_t unit : reducing_) units_[unit]->finish_reduce();
  reducing_.clear();
  for (Unit* unit : units_) unit->reshard();
}

UnitSchedule::Waiting UnitSchedule::take_waiting() {
  return std::exchange(waiting_, {});
}

}  // namespace conclave

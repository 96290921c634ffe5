#include "planner/step_walk.h"

#include <algorithm>

#include "base/error.h"
#include "config/mixtral_parameters.h"

namespace conclave {
namespace {

// What UnitSchedule does.
class ScheduleWalk {
 public:
  ScheduleWalk(const CheckedJob& job, std::vector<size_t> visits, StepObserver& observer)
      : prefetch_(static_cast<size_t>(job.job.parallel.prefetch_units)),
        visits_(std::move(visits)),
        gathered_(static_cast<size_t>(job.model.num_hidden_layers) + 2, State::sharded),
        observer_(observer) {
    const ReshardRule& rule = job.job.parallel.reshard_after_forward;
    if (rule.exceptions().empty())  // the same for all, whatever their names
      stays_gathered_.assign(gathered_.size(), rule.stays_gathered(""));
    else
      for (const UnitDeclaration& unit : declare_mixtral(job.model))
        stays_gathered_.push_back(rule.stays_gathered(unit.name));
  }

  void begin(size_t unit) {
    check_invariant(cursor_ < visits_.size() && visits_[cursor_] == unit, "the walk visits unit {} out of its turn",
                    unit);
    ++cursor_;
    gather(unit);
    for (size_t i = cursor_; i < std::min(visits_.size(), cursor_ + prefetch_); ++i) gather(visits_[i]);
    if (gathered_[unit] == State::gathering) observer_.finish_gather(unit);
    gathered_[unit] = State::unsharded;
  }
  void end(size_t unit) {
    if (!needed_soon(unit)) free(unit);
  }
  void reduce(size_t unit, bool first, bool last) {
    finish_reduction();
    observer_.begin_reduce(unit, first, last);
    reducing_.push_back({unit, last});
  }
  void finish() {
    finish_reduction();
    for (size_t unit = 0; unit < gathered_.size(); ++unit) free(unit);
  }

 private:
  enum class State { sharded, gathering, unsharded };

  void gather(size_t unit) {
    if (gathered_[unit] != State::sharded) return;
    observer_.begin_gather(unit);
    gathered_[unit] = State::gathering;
  }
  void free(size_t unit) {
    if (gathered_[unit] != State::sharded) observer_.free(unit);
    gathered_[unit] = State::sharded;
  }
  void finish_reduction() {
    for (const Reducing& one : reducing_) observer_.finish_reduce(one.unit, one.last);
    reducing_.clear();
  }
  bool needed_soon(size_t unit) const {
    const size_t end = stays_gathered_[unit] ? visits_.size() : std::min(visits_.size(), cursor_ + prefetch_ + 1);
    return std::find(visits_.begin() + cursor_, visits_.begin() + end, unit) != visits_.begin() + end;
  }

  size_t prefetch_;
  std::vector<bool> stays_gathered_;
  std::vector<size_t> visits_;
  size_t cursor_ = 0;
  std::vector<State> gathered_;
  struct Reducing {
    size_t unit;
    bool last;
  };
  std::vector<Reducing> reducing_;
  StepObserver& observer_;
};

// What ActivationStore does with the layers' inputs.
class OffloadWalk {
 public:
  OffloadWalk(const CheckedJob& job, StepObserver& observer)
      : layers_(static_cast<size_t>(job.model.num_hidden_layers)),
        horizon_(static_cast<size_t>(job.job.memory.activation_loading_horizon)),
        leaving_(layers_ > horizon_ ? layers_ - horizon_ : 0),
        observer_(observer) {
    if (!job.job.memory.activation_offloading) leaving_ = 0;
  }

  void put(size_t layer) {
    if (leaving_ == 0) return;
    while (on_device_ >= horizon_) {
      observer_.finish_offload(oldest_leaving_++);
      --on_device_;
    }
    ++on_device_;
    if (layer < leaving_) observer_.begin_offload(layer);
  }
  void take(size_t layer) {
    if (leaving_ == 0) return;
    if (one_is_taken_) --on_device_;
    if (layer == layers_ - 1) to_return_ = leaving_;
    for (; to_return_ > 0 && on_device_ < horizon_; --to_return_) {
      ++on_device_;
      observer_.begin_return(to_return_ - 1);
    }
    if (layer < leaving_) observer_.finish_return(layer);
    one_is_taken_ = true;
  }

 private:
  size_t layers_, horizon_;
  size_t leaving_;  // layers 0 .. this - 1 leave the device
  size_t on_device_ = 0, oldest_leaving_ = 0, to_return_ = 0;
  bool one_is_taken_ = false;
  StepObserver& observer_;
};

constexpr size_t embedding = 0;

size_t layers_of(const CheckedJob& job) {
  return static_cast<size_t>(job.model.num_hidden_layers);
}
size_t head_of(const CheckedJob& job) {
  return layers_of(job) + 1;
}

std::vector<size_t> visits_of(const CheckedJob& job, bool with_backward) {
  std::vector<size_t> visits;
  for (size_t unit = 0; unit <= head_of(job); ++unit) visits.push_back(unit);
  if (job.model.tie_word_embeddings) visits.push_back(embedding);
  if (with_backward)
    for (size_t layer = layers_of(job); layer >= 1; --layer) visits.push_back(layer);
  return visits;
}

void walk_forward(const CheckedJob& job, ScheduleWalk& schedule, OffloadWalk* offload, StepObserver& observer) {
  schedule.begin(embedding);
  observer.embedding_forward();
  schedule.end(embedding);
  for (size_t layer = 0; layer < layers_of(job); ++layer) {
    schedule.begin(layer + 1);
    observer.layer_forward(layer);
    schedule.end(layer + 1);
    if (offload != nullptr) offload->put(layer);
  }
  observer.begin_balance();
}

void begin_head(const CheckedJob& job, ScheduleWalk& schedule) {
  schedule.begin(head_of(job));
  if (job.model.tie_word_embeddings) schedule.begin(embedding);
}
void end_head(const CheckedJob& job, ScheduleWalk& schedule) {
  schedule.end(head_of(job));
  if (job.model.tie_word_embeddings) schedule.end(embedding);
}

}  // namespace

void walk_micro_step(const CheckedJob& job, bool first, bool last, StepObserver& observer) {
  observer.begin_micro_step();
  ScheduleWalk schedule(job, visits_of(job, /*with_backward=*/true), observer);
  OffloadWalk offload(job, observer);
  walk_forward(job, schedule, &offload, observer);

  begin_head(job, schedule);
  observer.begin_gradients(head_of(job));
  if (job.model.tie_word_embeddings) observer.begin_gradients(embedding);
  observer.head();
  end_head(job, schedule);
  schedule.reduce(head_of(job), first, last);

  observer.finish_balance();
  for (size_t layer = layers_of(job); layer-- > 0;) {
    offload.take(layer);
    schedule.begin(layer + 1);
    observer.begin_gradients(layer + 1);
    observer.layer_backward(layer);
    schedule.end(layer + 1);
    schedule.reduce(layer + 1, first, last);
  }
  if (!job.model.tie_word_embeddings) observer.begin_gradients(embedding);
  observer.embedding_backward();
  schedule.reduce(embedding, first, last);
  schedule.finish();
  observer.end_micro_step();
}

void walk_evaluation(const CheckedJob& job, StepObserver& observer) {
  observer.begin_micro_step();
  ScheduleWalk schedule(job, visits_of(job, /*with_backward=*/false), observer);
  walk_forward(job, schedule, nullptr, observer);
  observer.finish_balance();
  begin_head(job, schedule);
  observer.head();
  end_head(job, schedule);
  schedule.finish();
  observer.end_micro_step();
}

void walk_step(const CheckedJob& job, StepObserver& observer) {
  for (int64_t m = 0; m < job.micro_steps; ++m) walk_micro_step(job, m == 0, m == job.micro_steps - 1, observer);
  observer.loss_sum();
  observer.gradient_norm();
  observer.update();
}

}  // namespace conclave

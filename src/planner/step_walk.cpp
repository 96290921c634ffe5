#include "planner/step_walk.h"

#include <algorithm>

#include "base/error.h"

namespace conclave {
namespace {

// What UnitSchedule does.
class ScheduleWalk {
 public:
  ScheduleWalk(const CheckedJob& job, std::vector<size_t> visits, StepObserver& observer)
      : prefetch_(static_cast<size_t>(job.job.parallel.prefetch_units)),
        reshard_after_forward_(job.job.parallel.reshard_after_forward),
        visits_(std::move(visits)),
        gathered_(static_cast<size_t>(job.model.num_hidden_layers) + 2, State::sharded),
        observer_(observer) {}

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
    const size_t end =
        reshard_after_forward_ ? std::min(visits_.size(), cursor_ + prefetch_ + 1) : visits_.size();
    return std::find(visits_.begin() + cursor_, visits_.begin() + end, unit) != visits_.begin() + end;
  }

  size_t prefetch_;
  bool reshard_after_forward_;
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

void walk_forward(const CheckedJob& job, ScheduleWalk& schedule, StepObserver& observer) {
  schedule.begin(embedding);
  observer.embedding_forward();
  schedule.end(embedding);
  for (size_t layer = 0; layer < layers_of(job); ++layer) {
    schedule.begin(layer + 1);
    observer.layer_forward(layer);
    schedule.end(layer + 1);
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
  walk_forward(job, schedule, observer);

  begin_head(job, schedule);
  observer.begin_gradients(head_of(job));
  if (job.model.tie_word_embeddings) observer.begin_gradients(embedding);
  observer.head();
  end_head(job, schedule);
  schedule.reduce(head_of(job), first, last);

  observer.finish_balance();
  for (size_t layer = layers_of(job); layer-- > 0;) {
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
  walk_forward(job, schedule, observer);
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

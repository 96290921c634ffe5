// The heart: the only thread of a rank that talks with the store.
#include <algorithm>
#include <thread>

#include "base/error.h"
#include "comm/watchdog_shared.h"

namespace conclave {
void Watchdog::Shared::start(std::chrono::milliseconds timeout) {
  try {
    publish_report();
    if (meet(timeout)) return;
    if (!adopt_verdict()) {
      const std::vector<int> missing = board->ranks_without_report(world_size);
      publish_verdict({fmt::format("{} did not start within {} s", name_ranks(missing),
                                   std::chrono::duration_cast<std::chrono::seconds>(timeout).count()),
                       missing});
    }
    leave();
  } catch (const std::exception& error) {
    conclude(lost_store(fmt::format("is gone ({})", first_line(error.what()))));
  }
  throw PeerLostError(fmt::format("{}; this is rank {} of {}", verdict->text, rank, world_size), verdict->lost);
}

bool Watchdog::Shared::meet(std::chrono::milliseconds timeout) {
  const auto until = std::chrono::steady_clock::now() + timeout;
  int64_t started = board->count_started(1);
  for (auto pause = std::chrono::milliseconds(5); started < world_size; pause = std::min(2 * pause, options.beat)) {
    if (std::chrono::steady_clock::now() > until || board->verdict()) return false;
    std::this_thread::sleep_for(pause);
    started = board->count_started(0);
  }
  return true;
}

void Watchdog::Shared::run_heart() {
  try {
    for (bool go_on = true; go_on;) {
      tend();
      std::unique_lock lock(mutex);
      changed.wait_for(lock, finish_counted ? finish_pause : options.beat, [&] { return ending || heart_is_asked(); });
      go_on = !ending;
    }
    leave();
  } catch (const std::exception& error) {
    std::lock_guard lock(mutex);
    if (!all_finished) conclude(lost_store(fmt::format("is gone ({})", first_line(error.what()))));
  }
  std::lock_guard lock(mutex);
  heart_ended = true;
  changed.notify_all();
}

bool Watchdog::Shared::heart_is_asked() const {
  return !verdict && (to_examine || !reason_to_stop.empty() || (finish_asked && !finish_counted));
}

void Watchdog::Shared::tend() {
  publish_report();
  if (has_verdict() || adopt_verdict()) return;
  std::optional<Failure> failure;
  std::string reason;
  bool finishing;
  {
    std::lock_guard lock(mutex);
    failure = to_examine;
    reason = reason_to_stop;
    finishing = finish_asked && !all_finished;
  }
  if (!reason.empty()) return publish_verdict({fmt::format("rank {} stopped: {}", rank, reason), {}});
  if (failure) return examine(*failure);
  if (finishing) count_finished();
  if (watch_next_rank()) examine({});
}

void Watchdog::Shared::publish_report() {
  RankReport report;
  std::vector<std::shared_ptr<Calls>> unannounced;
  {
    std::lock_guard lock(mutex);
    ++rounds;
    report.state = state;
    if (!waiting.empty()) report.waits_in = waiting.front()->operation_;
    report.last = last;
    for (const auto& of_communicator : calls) report.numbers[of_communicator->key] = of_communicator->number;
    unannounced.assign(calls.begin() + announced, calls.end());
    announced = calls.size();
  }
  for (const auto& communicator : unannounced)
    if (communicator->ranks[0] == rank) board->write_ranks(communicator->key, communicator->ranks);
  report.beat = ++beat;
  board->write_report(rank, report);
}

bool Watchdog::Shared::has_verdict() {
  std::lock_guard lock(mutex);
  return verdict.has_value();
}

bool Watchdog::Shared::adopt_verdict() {
  const auto standing = board->verdict();
  if (!standing) return false;
  std::lock_guard lock(mutex);
  conclude(*standing);
  return true;
}

void Watchdog::Shared::publish_verdict(const Diagnosis& diagnosis) {
  const Diagnosis standing = board->write_verdict(diagnosis);
  std::lock_guard lock(mutex);
  conclude(standing);
}

void Watchdog::Shared::count_finished() {
  const int64_t finished = board->count_finished(finish_counted ? 0 : 1);
  std::lock_guard lock(mutex);
  if (finish_counted) finish_pause = std::min(2 * finish_pause, options.beat);
  finish_counted = true;
  all_finished = finished == world_size;
  if (all_finished) changed.notify_all();
}

bool Watchdog::Shared::watch_next_rank() {
  const auto now = std::chrono::steady_clock::now();
  if (now - next_rank_seen < options.beat / 2) return false;
  next_rank_seen = now;
  next_rank.see(board->report_of((rank + 1) % world_size));
  return next_rank.beats >= options.lost_after_beats;
}

void Watchdog::Shared::examine(const Failure& failure) {
  const int next = (rank + 1) % world_size;
  std::vector<Silence> seen(world_size);
  seen[next] = next_rank;
  for (int beats = 0;; ++beats) {
    bool all_known = beats > 0;  // each one is alive, or has been silent for too long
    for (int other = 0; other < world_size; ++other) {
      if (other == rank) continue;
      seen[other].see(board->report_of(other));
      all_known = all_known && (seen[other].beats == 0 || seen[other].beats >= options.lost_after_failure_beats);
    }
    if (all_known) break;
    {
      std::unique_lock lock(mutex);
      changed.wait_for(lock, options.beat, [&] { return ending; });
      if (ending) return;
    }
    publish_report();
    if (adopt_verdict()) return;
  }
  std::vector<Observation> observations(world_size);
  for (int other = 0; other < world_size; ++other) {
    observations[other].report = other == rank ? board->report_of(rank) : seen[other].report;
    observations[other].silent_seconds = seconds(seen[other].beats);
    observations[other].is_silent = seen[other].beats >= options.lost_after_failure_beats;
  }
  publish_verdict(diagnose(rank, observations, failure,
                           [&](const std::string& communicator) { return board->ranks_of(communicator); }));
}

void Watchdog::Shared::leave() {
  publish_report();
  int64_t gone = board->count_gone(1);
  if (!serves_store) return;
  const auto until = std::chrono::steady_clock::now() + 3 * options.beat;
  for (auto pause = std::chrono::milliseconds(5); gone < world_size && std::chrono::steady_clock::now() < until;
       pause = std::min(2 * pause, options.beat)) {
    std::this_thread::sleep_for(pause);
    gone = board->count_gone(0);
  }
}

}  // namespace conclave

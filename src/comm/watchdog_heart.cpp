// The heart: the only thread of a rank that talks with the store.
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "base/error.h"
#include "comm/foreign_text.h"
#include "comm/process_state.h"
#include "comm/watchdog_shared.h"

namespace conclave {
void Watchdog::Shared::start(std::chrono::milliseconds timeout) {
  try {
    if (!board->take_place(rank, fmt::format("{} {}", host, ::getpid())))
      user_error(
          "{} has a rank {} already: another job meets there. Wait for its end, or choose another port (MASTER_PORT).",
          store_name, rank);
    publish_report();
    if (meet(timeout)) return;
    if (!adopt_verdict()) {
      const std::vector<int> missing = board->ranks_without_report(world_size);
      publish_verdict({fmt::format("{} did not start within {} s", name_ranks(missing),
                                   std::chrono::duration_cast<std::chrono::seconds>(timeout).count()),
                       missing});
    }
    leave();
  } catch (const UserError&) {
    throw;
  } catch (const ForeignTextError& error) {
    end_by_foreign_text(error.what());
  } catch (const std::exception& error) {
    end_without_store(error);
  }
  throw PeerLostError(fmt::format("{}; this is rank {} of {}", verdict->text, rank, world_size), verdict->lost);
}

bool Watchdog::Shared::meet(std::chrono::milliseconds timeout) {
  const auto until = std::chrono::steady_clock::now() + timeout;
  board->reach(NoticeBoard::Milestone::started, rank);
  for (auto pause = std::chrono::milliseconds(5);
       !board->all_reached(NoticeBoard::Milestone::started, rank, world_size);
       pause = std::min(2 * pause, options.beat)) {
    if (std::chrono::steady_clock::now() > until || board->verdict()) return false;
    std::this_thread::sleep_for(pause);
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
  } catch (const ForeignTextError& error) {
    end_by_foreign_text(error.what());
  } catch (const std::exception& error) {
    end_without_store(error);
  }
  std::lock_guard lock(mutex);
  heart_ended = true;
  changed.notify_all();
}

void Watchdog::Shared::end_by_foreign_text(const std::string& what) noexcept {
  const Diagnosis verdict{what, {}};
  try {
    publish_verdict(verdict);
    leave();
  } catch (const std::exception&) {  // what stands there may be the verdict itself
    std::lock_guard lock(mutex);
    if (!all_finished) conclude(verdict);
  }
}

void Watchdog::Shared::end_without_store(const std::exception& error) {
  std::lock_guard lock(mutex);
  if (!all_finished) conclude(lost_store(fmt::format("is gone ({})", first_line(error.what()))));
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
  if (finishing) look_for_finished();
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
    report.process = ::getpid();
    report.host = host;
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

void Watchdog::Shared::look_for_finished() {
  if (!finish_counted) board->reach(NoticeBoard::Milestone::finished, rank);
  const bool all = board->all_reached(NoticeBoard::Milestone::finished, rank, world_size);
  std::lock_guard lock(mutex);
  if (finish_counted) finish_pause = std::min(2 * finish_pause, options.beat);
  finish_counted = true;
  all_finished = all;
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
  std::vector<Observation> observations;
  for (int other = 0; other < world_size; ++other) observations.push_back(observe(other, seen[other]));
  publish_verdict(diagnose(rank, observations, failure,
                           [&](const std::string& communicator) { return board->ranks_of(communicator); }));
}

Observation Watchdog::Shared::observe(int other, const Silence& seen) {
  Observation observation;
  observation.report = other == rank ? board->report_of(rank) : seen.report;
  observation.silent_seconds = seconds(seen.beats);
  observation.is_silent = seen.beats >= options.lost_after_failure_beats;
  if (observation.is_silent && !host.empty() && observation.report->host == host)
    observation.trouble = trouble_of_process(observation.report->process);
  const std::lock_guard lock(mutex);
  if (heard[other]) observation.heard = *heard[other];
  return observation;
}

void Watchdog::Shared::leave() {
  publish_report();
  board->reach(NoticeBoard::Milestone::gone, rank);
  if (!serves_store) return;
  const auto until = std::chrono::steady_clock::now() + 3 * options.beat;
  for (auto pause = std::chrono::milliseconds(5);
       !board->has_seen_all(NoticeBoard::Milestone::gone, world_size) && std::chrono::steady_clock::now() < until;
       pause = std::min(2 * pause, options.beat))
    std::this_thread::sleep_for(pause);
}

}  // namespace conclave

#include "comm/watchdog.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "comm/process_state.h"
#include "comm/watchdog_shared.h"

namespace conclave {
void Watchdog::Shared::run_monitor() {
  uint64_t rounds_seen = 0;
  int beats_without_round = 0;
  int beats_since_verdict = 0;
  std::unique_lock lock(mutex);
  while (!changed.wait_for(lock, options.beat, [&] { return ending; })) {
    beats_without_round = rounds == rounds_seen ? beats_without_round + 1 : 0;
    rounds_seen = rounds;
    if (!verdict && beats_without_round >= options.lost_after_beats)
      conclude(lost_store(fmt::format("has not answered for {:.0f} s", seconds(beats_without_round))));
    if (verdict && ++beats_since_verdict * options.beat > options.grace) end_process();
  }
}

void Watchdog::Shared::run_supervisor() {
  std::unique_lock lock(mutex);
  while (!changed.wait_for(lock, options.beat, [&] { return ending; })) {
    if (verdict || to_examine) continue;
    lock.unlock();
    auto failure = find_overdue();
    // Who waits where is not known: the verdict must say which collective it was.
    if (failure && failure->operation)
      failure->error = fmt::format("{}: {}", failure->operation->text(), failure->error);
    lock.lock();
    if (!verdict && !to_examine) to_examine = std::move(failure);
  }
  supervisor_ended = true;
  changed.notify_all();
}

std::optional<Failure> Watchdog::Shared::find_overdue() {
  const std::lock_guard lock(supervised_mutex);
  for (const auto& overdue : supervised) {
    try {
      if (auto failure = overdue()) return failure;
    } catch (const std::exception& error) {
      return Failure{{}, -1, false, 0, error.what()};
    }
  }
  return {};
}

void Watchdog::Shared::end_process() {
  spdlog::critical("{}. This rank ({}) did not leave by itself within {:.0f} s and is ended.", verdict->text, rank,
                   std::chrono::duration<double>(options.grace).count());
  spdlog::default_logger()->flush();
  std::fflush(nullptr);
  std::_Exit(exit_peer_lost);
}

void Watchdog::Shared::conclude(const Diagnosis& diagnosis) {
  if (verdict) return;
  verdict = diagnosis;
  for (Waiting* wait : waiting) wait->abort_();
  changed.notify_all();
}

Diagnosis Watchdog::Shared::lost_store(const std::string& how) const {
  return {fmt::format("rank 0 is lost: {} {}", store_name, how), {0}};
}

Watchdog::Watchdog(c10::intrusive_ptr<c10d::Store> store, std::string store_name, bool serves_store, int rank,
                   int world_size, WatchdogOptions options, std::chrono::milliseconds start_timeout)
    : shared_(std::make_shared<Shared>()) {
  Shared& shared = *shared_;
  shared.board = std::make_unique<NoticeBoard>(std::move(store));
  shared.store_name = std::move(store_name);
  shared.serves_store = serves_store;
  shared.rank = rank;
  shared.world_size = world_size;
  shared.heard.resize(world_size);
  shared.host = name_of_host();
  shared.options = options;
  shared.start(start_timeout);
  heart_ = std::thread([shared = shared_] { shared->run_heart(); });
  monitor_ = std::thread([shared = shared_] { shared->run_monitor(); });
}

Watchdog::~Watchdog() {
  end();
}

void Watchdog::end() noexcept {
  if (!heart_.joinable()) return;
  stop("it ended without a word");
  std::unique_lock lock(shared_->mutex);
  shared_->ending = true;
  shared_->changed.notify_all();
  shared_->changed.wait_for(lock, 4 * shared_->options.beat + std::chrono::seconds(1),
                            [&] { return shared_->heart_ended && shared_->supervisor_ended; });
  // One that is stuck, in a store that does not answer or in a device, holds what it needs.
  const bool heart_ended = shared_->heart_ended, supervisor_ended = shared_->supervisor_ended;
  lock.unlock();
  monitor_.join();
  heart_ended ? heart_.join() : heart_.detach();
  if (supervisor_.joinable()) supervisor_ended ? supervisor_.join() : supervisor_.detach();
}

std::shared_ptr<Watchdog::Calls> Watchdog::watch(const std::string& axis, std::vector<int> ranks) {
  check_invariant(!ranks.empty() && !axis.empty() && axis.find_first_of(" /\n") == std::string::npos,
                  "a communicator of {} ranks named \"{}\"", ranks.size(), axis);
  std::lock_guard lock(shared_->mutex);
  std::string key = fmt::format("{}/{}", axis, ranks[0]);
  const auto same = std::count_if(shared_->calls.begin(), shared_->calls.end(),
                                  [&](const auto& other) { return other->key.starts_with(axis + "/"); });
  if (same > 0) key += fmt::format("/{}", same);
  shared_->calls.push_back(std::make_shared<Calls>(Calls{std::move(key), std::move(ranks)}));
  return shared_->calls.back();
}

Operation Watchdog::call(Calls& calls, const char* name) {
  std::lock_guard lock(shared_->mutex);
  Operation operation{calls.key, name, calls.number + 1};
  if (shared_->verdict)
    throw PeerLostError(
        fmt::format("{}; this rank ({}) was about to call {}", shared_->verdict->text, shared_->rank, operation.text()),
        shared_->verdict->lost);
  calls.number = operation.number;
  shared_->last = operation;
  return operation;
}

void Watchdog::heard(const Operation& operation, const std::vector<int>& peers) {
  if (peers.empty()) return;
  const auto shared_operation = std::make_shared<const Operation>(operation);
  std::lock_guard lock(shared_->mutex);
  for (const int peer : peers) shared_->heard[peer] = shared_operation;
}

void Watchdog::fail(const Failure& failure) {
  Shared& shared = *shared_;
  std::unique_lock lock(shared.mutex);
  if (!shared.verdict) {
    if (!shared.to_examine) shared.to_examine = failure;
    shared.changed.notify_all();
    const auto limit = (shared.options.lost_after_failure_beats + 3) * shared.options.beat + std::chrono::seconds(5);
    shared.changed.wait_for(lock, limit, [&] { return shared.verdict.has_value(); });
    shared.conclude(shared.lost_store("does not answer"));
  }
  const std::string where =
      failure.operation ? fmt::format("; this rank ({}) was in {}", shared.rank, failure.operation->text()) : "";
  throw PeerLostError(shared.verdict->text + where, shared.verdict->lost);
}

void Watchdog::stop(const std::string& reason) noexcept {
  std::unique_lock lock(shared_->mutex);
  if (shared_->state != RankState::running || shared_->all_finished) return;
  shared_->state = RankState::stopped;
  shared_->reason_to_stop = reason.empty() ? "no reason given" : first_line(reason);
  shared_->changed.notify_all();
  shared_->changed.wait_for(lock, std::chrono::seconds(3), [&] { return shared_->verdict || shared_->heart_ended; });
}

void Watchdog::finish() {
  Shared& shared = *shared_;
  std::unique_lock lock(shared.mutex);
  if (!shared.verdict) {
    shared.state = RankState::finished;
    shared.finish_asked = true;
    shared.changed.notify_all();
    shared.changed.wait(lock, [&] { return shared.all_finished || shared.verdict; });
  }
  if (!shared.all_finished)
    throw PeerLostError(fmt::format("{}; this rank ({}) had finished", shared.verdict->text, shared.rank),
                        shared.verdict->lost);
}

std::shared_ptr<void> Watchdog::supervise(std::function<std::optional<Failure>()> overdue) {
  {
    const std::lock_guard lock(shared_->mutex);
    if (!supervisor_.joinable()) {
      shared_->supervisor_ended = false;
      supervisor_ = std::thread([shared = shared_] { shared->run_supervisor(); });
    }
  }
  const std::lock_guard lock(shared_->supervised_mutex);
  shared_->supervised.push_back(std::move(overdue));
  const auto entry = std::prev(shared_->supervised.end());
  return {nullptr, [shared = shared_, entry](void*) {
            const std::lock_guard lock(shared->supervised_mutex);
            shared->supervised.erase(entry);
          }};
}

Watchdog::Waiting::Waiting(Watchdog& watchdog, Operation operation, std::function<void()> abort)
    : shared_(watchdog.shared_), operation_(std::move(operation)), abort_(std::move(abort)) {
  std::lock_guard lock(shared_->mutex);
  shared_->waiting.push_back(this);
  if (shared_->verdict) abort_();
}

Watchdog::Waiting::~Waiting() {
  std::lock_guard lock(shared_->mutex);
  shared_->waiting.remove(this);
}

}  // namespace conclave

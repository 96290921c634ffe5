#include "comm/watchdog.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "comm/notice_board.h"

namespace conclave {
namespace {

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

// How long a rank has been silent, in beats of the one who watches.
struct Silence {
  std::optional<RankReport> report;
  int beats = 0;

  void see(RankReport newest) {
    const bool grew = !report || newest.beat != report->beat || newest.state != RankState::running;
    beats = grew ? 0 : beats + 1;
    report = std::move(newest);
  }
};

}  // namespace

struct Watchdog::Shared {
  // Set once.
  std::unique_ptr<NoticeBoard> board;  // used by the constructor, then by the heart alone
  std::string store_name;
  bool serves_store = false;
  int rank = 0;
  int world_size = 1;
  WatchdogOptions options;

  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by the mutex.
  RankState state = RankState::running;
  std::string verdict;                // empty: all is well
  std::optional<Failure> to_examine;  // by the heart
  std::string reason_to_stop;         // to be published by the heart
  bool finish_asked = false;
  bool all_finished = false;
  bool ending = false;
  bool heart_ended = false;
  uint64_t rounds = 0;  // of the heart: each spoke with the store
  std::list<Waiting*> waiting;
  std::vector<std::shared_ptr<Calls>> calls;  // of every communicator
  std::optional<Operation> last;              // the newest call of any
  std::list<std::function<std::optional<Failure>()>> supervised;

  // The heart's own.
  uint64_t beat = 0;
  size_t announced = 0;  // communicators whose ranks are in the store
  Silence next_rank;
  std::chrono::steady_clock::time_point next_rank_seen;
  bool finish_counted = false;
  std::chrono::milliseconds finish_pause{10};

  double seconds(int beats) const { return std::chrono::duration<double>(options.beat).count() * beats; }

  void start(std::chrono::milliseconds timeout) {
    try {
      publish_report();
      if (meet(timeout)) return;
      if (!adopt_verdict())
        publish_verdict(fmt::format("{} did not start within {} s", name_ranks(board->ranks_without_report(world_size)),
                                    std::chrono::duration_cast<std::chrono::seconds>(timeout).count()));
      leave();
    } catch (const std::exception& error) {
      conclude(fmt::format("rank 0 is lost: {} is gone ({})", store_name, first_line(error.what())));
    }
    throw PeerLostError(fmt::format("{}; this is rank {} of {}", verdict, rank, world_size));
  }

  // True when all ranks have come; false if not in time, or if there is a verdict.
  bool meet(std::chrono::milliseconds timeout) {
    const auto until = std::chrono::steady_clock::now() + timeout;
    int64_t started = board->count_started(1);
    for (auto pause = std::chrono::milliseconds(5); started < world_size; pause = std::min(2 * pause, options.beat)) {
      if (std::chrono::steady_clock::now() > until || board->verdict()) return false;
      std::this_thread::sleep_for(pause);
      started = board->count_started(0);
    }
    return true;
  }

  // ---- the heart: the only thread that talks with the store

  void run_heart() {
    try {
      for (bool go_on = true; go_on;) {
        tend();
        std::unique_lock lock(mutex);
        changed.wait_for(lock, finish_counted ? finish_pause : options.beat,
                         [&] { return ending || heart_is_asked(); });
        go_on = !ending;
      }
      leave();
    } catch (const std::exception& error) {
      std::lock_guard lock(mutex);
      if (!all_finished) conclude(fmt::format("rank 0 is lost: {} is gone ({})", store_name, first_line(error.what())));
    }
    std::lock_guard lock(mutex);
    heart_ended = true;
    changed.notify_all();
  }

  bool heart_is_asked() const {
    return verdict.empty() && (to_examine || !reason_to_stop.empty() || (finish_asked && !finish_counted));
  }

  void tend() {
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
    if (!reason.empty()) return publish_verdict(fmt::format("rank {} stopped: {}", rank, reason));
    if (failure) return examine(*failure);
    if (finishing) count_finished();
    if (watch_next_rank()) examine({});
  }

  void publish_report() {
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

  bool has_verdict() {
    std::lock_guard lock(mutex);
    return !verdict.empty();
  }

  bool adopt_verdict() {
    const auto standing = board->verdict();
    if (!standing) return false;
    std::lock_guard lock(mutex);
    conclude(*standing);
    return true;
  }

  // The first verdict stands, for all ranks.
  void publish_verdict(const std::string& text) {
    const std::string standing = board->write_verdict(text);
    std::lock_guard lock(mutex);
    conclude(standing);
  }

  void count_finished() {
    const int64_t finished = board->count_finished(finish_counted ? 0 : 1);
    std::lock_guard lock(mutex);
    if (finish_counted) finish_pause = std::min(2 * finish_pause, options.beat);
    finish_counted = true;
    all_finished = finished == world_size;
    if (all_finished) changed.notify_all();
  }

  // True if it has been silent for too long. Looks at most once a beat: rounds come faster when something is asked.
  bool watch_next_rank() {
    const auto now = std::chrono::steady_clock::now();
    if (now - next_rank_seen < options.beat / 2) return false;
    next_rank_seen = now;
    next_rank.see(board->report_of((rank + 1) % world_size));
    return next_rank.beats >= options.lost_after_beats;
  }

  // Watches all ranks until each has given a sign of life, or been silent for too long; then gives the verdict.
  void examine(const Failure& failure) {
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

  // The last word. The one who serves the store stays a little, so that the others can read it.
  void leave() {
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

  // ---- the monitor: notices when the heart is stuck in the store, and ends a rank that does not leave

  void run_monitor() {
    uint64_t rounds_seen = 0;
    int beats_without_round = 0;
    int beats_since_verdict = 0;
    std::unique_lock lock(mutex);
    while (!changed.wait_for(lock, options.beat, [&] { return ending; })) {
      beats_without_round = rounds == rounds_seen ? beats_without_round + 1 : 0;
      rounds_seen = rounds;
      if (verdict.empty() && beats_without_round >= options.lost_after_beats)
        conclude(
            fmt::format("rank 0 is lost: {} has not answered for {:.0f} s", store_name, seconds(beats_without_round)));
      if (verdict.empty() && !to_examine) to_examine = find_overdue();
      if (!verdict.empty() && ++beats_since_verdict * options.beat > options.grace) end_process();
    }
  }

  std::optional<Failure> find_overdue() {
    for (const auto& overdue : supervised)
      if (auto failure = overdue()) return failure;
    return {};
  }

  [[noreturn]] void end_process() {
    spdlog::critical("{}. This rank ({}) did not leave by itself within {:.0f} s and is ended.", verdict, rank,
                     std::chrono::duration<double>(options.grace).count());
    spdlog::default_logger()->flush();
    std::fflush(nullptr);
    std::_Exit(exit_peer_lost);
  }

  // The mutex is held.
  void conclude(const std::string& text) {
    if (!verdict.empty()) return;
    verdict = text;
    for (Waiting* wait : waiting) wait->abort_();
    changed.notify_all();
  }
};

Watchdog::Watchdog(c10::intrusive_ptr<c10d::Store> store, std::string store_name, bool serves_store, int rank,
                   int world_size, WatchdogOptions options, std::chrono::milliseconds start_timeout)
    : shared_(std::make_shared<Shared>()) {
  Shared& shared = *shared_;
  shared.board = std::make_unique<NoticeBoard>(std::move(store));
  shared.store_name = std::move(store_name);
  shared.serves_store = serves_store;
  shared.rank = rank;
  shared.world_size = world_size;
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
  const bool heart_ended = shared_->changed.wait_for(lock, 4 * shared_->options.beat + std::chrono::seconds(1),
                                                     [&] { return shared_->heart_ended; });
  lock.unlock();
  monitor_.join();
  if (heart_ended) {
    heart_.join();
  } else {
    heart_.detach();  // stuck in a store that does not answer; it holds what it needs
  }
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
  if (!shared_->verdict.empty())
    throw PeerLostError(
        fmt::format("{}; this rank ({}) was about to call {}", shared_->verdict, shared_->rank, operation.text()));
  calls.number = operation.number;
  shared_->last = operation;
  return operation;
}

void Watchdog::fail(const Failure& failure) {
  Shared& shared = *shared_;
  std::unique_lock lock(shared.mutex);
  if (shared.verdict.empty()) {
    if (!shared.to_examine) shared.to_examine = failure;
    shared.changed.notify_all();
    const auto limit = (shared.options.lost_after_failure_beats + 3) * shared.options.beat + std::chrono::seconds(5);
    shared.changed.wait_for(lock, limit, [&] { return !shared.verdict.empty(); });
    shared.conclude(fmt::format("rank 0 is lost: {} does not answer", shared.store_name));
  }
  const std::string where =
      failure.operation ? fmt::format("; this rank ({}) was in {}", shared.rank, failure.operation->text()) : "";
  throw PeerLostError(shared.verdict + where);
}

void Watchdog::stop(const std::string& reason) noexcept {
  std::unique_lock lock(shared_->mutex);
  if (shared_->state != RankState::running || shared_->all_finished) return;
  shared_->state = RankState::stopped;
  shared_->reason_to_stop = reason.empty() ? "no reason given" : first_line(reason);
  shared_->changed.notify_all();
  shared_->changed.wait_for(lock, std::chrono::seconds(3),
                            [&] { return !shared_->verdict.empty() || shared_->heart_ended; });
}

void Watchdog::finish() {
  Shared& shared = *shared_;
  std::unique_lock lock(shared.mutex);
  if (shared.verdict.empty()) {
    shared.state = RankState::finished;
    shared.finish_asked = true;
    shared.changed.notify_all();
    shared.changed.wait(lock, [&] { return shared.all_finished || !shared.verdict.empty(); });
  }
  if (!shared.all_finished)
    throw PeerLostError(fmt::format("{}; this rank ({}) had finished", shared.verdict, shared.rank));
}

std::shared_ptr<void> Watchdog::supervise(std::function<std::optional<Failure>()> overdue) {
  std::lock_guard lock(shared_->mutex);
  shared_->supervised.push_back(std::move(overdue));
  const auto entry = std::prev(shared_->supervised.end());
  return {nullptr, [shared = shared_, entry](void*) {
            std::lock_guard lock(shared->mutex);
            shared->supervised.erase(entry);
          }};
}

Watchdog::Waiting::Waiting(Watchdog& watchdog, Operation operation, std::function<void()> abort)
    : shared_(watchdog.shared_), operation_(std::move(operation)), abort_(std::move(abort)) {
  std::lock_guard lock(shared_->mutex);
  shared_->waiting.push_back(this);
  if (!shared_->verdict.empty()) abort_();
}

Watchdog::Waiting::~Waiting() {
  std::lock_guard lock(shared_->mutex);
  shared_->waiting.remove(this);
}

}  // namespace conclave

// What the threads of a Watchdog share: the heart, which alone talks with the store, the monitor, and those who call
// collectives. For the watchdog's own files.
#pragma once

#include <condition_variable>
#include <list>
#include <mutex>

#include "base/first_line.h"
#include "comm/notice_board.h"
#include "comm/watchdog.h"

namespace conclave {

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

struct Watchdog::Shared {
  // Set once.
  std::unique_ptr<NoticeBoard> board;  // used by the constructor, then by the heart alone
  std::string store_name;
  bool serves_store = false;
  int rank = 0;
  int world_size = 1;
  WatchdogOptions options;
  std::string host;  // see name_of_host()

  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by the mutex.
  RankState state = RankState::running;
  std::optional<Diagnosis> verdict;   // nothing: all is well
  std::optional<Failure> to_examine;  // by the heart
  std::string reason_to_stop;         // to be published by the heart
  bool finish_asked = false;
  bool all_finished = false;
  bool ending = false;
  bool heart_ended = false;
  uint64_t rounds = 0;  // of the heart: each spoke with the store
  std::list<Waiting*> waiting;
  std::vector<std::shared_ptr<Calls>> calls;            // of every communicator
  std::optional<Operation> last;                        // the newest call of any
  std::vector<std::shared_ptr<const Operation>> heard;  // by rank, the newest; null: nothing yet
  bool supervisor_ended = true;                         // or never began

  std::mutex supervised_mutex;
  std::list<std::function<std::optional<Failure>()>> supervised;  // guarded by supervised_mutex

  // The heart's own.
  uint64_t beat = 0;
  size_t announced = 0;  // communicators whose ranks are in the store
  Silence next_rank;
  std::chrono::steady_clock::time_point next_rank_seen;
  bool finish_counted = false;
  std::chrono::milliseconds finish_pause{10};

  double seconds(int beats) const { return std::chrono::duration<double>(options.beat).count() * beats; }
  // Waits until all ranks have come; otherwise throws PeerLostError.
  void start(std::chrono::milliseconds timeout);
  // True when all ranks have come; false if not in time, or if there is a verdict.
  bool meet(std::chrono::milliseconds timeout);

  // The heart (watchdog_heart.cpp).
  void run_heart();
  bool heart_is_asked() const;
  void tend();
  void publish_report();
  bool has_verdict();
  bool adopt_verdict();
  // The first verdict stands, for all ranks.
  void publish_verdict(const Diagnosis& diagnosis);
  // Something in the store is no rank's: the job ends, as far as the others can still be told.
  void end_by_foreign_text(const std::string& what) noexcept;
  // The store does not answer, or its connection broke.
  void end_without_store(const std::exception& error);
  void look_for_finished();
  // True if it has been silent for too long. Looks at most once a beat: rounds come faster when something is asked.
  bool watch_next_rank();
  // Watches all ranks until each has given a sign of life, or been silent for too long; then gives the verdict.
  void examine(const Failure& failure);
  Observation observe(int other, const Silence& seen);
  // The last word. The one who serves the store stays a little, so that the others can read it.
  void leave();

  // The monitor (watchdog.cpp): notices when the heart is stuck in the store, and ends a rank that does not leave.
  void run_monitor();
  // The supervisor (watchdog.cpp), if anything is supervised: what it asks may hang with a device, and neither the
  // heart nor the monitor waits for it.
  void run_supervisor();
  std::optional<Failure> find_overdue();
  [[noreturn]] void end_process();
  // The mutex is held.
  void conclude(const Diagnosis& diagnosis);
  // Rank 0 serves the store, so it is lost with it. `how`: "is gone (...)".
  Diagnosis lost_store(const std::string& how) const;
};

}  // namespace conclave

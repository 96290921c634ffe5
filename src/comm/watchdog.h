// Tells the ranks of a job when one of them is lost, hangs or stops, and names it.
//
// Each rank beats: once a second a thread of its own writes the rank's report (rank_report.h) to the store, looks for a
// verdict, and watches the beat of the next rank, so the load on the store grows with the world and not with its
// square. Whoever learns of a failure first, by a silent neighbour or by a collective that failed, examines all ranks
// (diagnosis.h) and publishes one verdict for the job: the first verdict stands. Then every rank's waits end with a
// PeerLostError that carries it, and a rank that still has not left after a time of grace is ended with exit_peer_lost.
// Silence is counted in the watching rank's own beats, so a job that is paused and continued as a whole (a suspended
// machine) loses nobody.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/diagnosis.h"
#include "comm/rank_report.h"

namespace conclave {

struct WatchdogOptions {
  std::chrono::milliseconds beat{1000};
  int lost_after_beats = 30;               // a rank silent for so long is lost, even when nobody waits for it
  int lost_after_failure_beats = 5;        // the same once a collective has failed
  std::chrono::milliseconds grace{10000};  // from the verdict until a rank that did not leave by itself is ended
};

class Watchdog {
 private:
  struct Shared;  // what the threads see; outlives the Watchdog if its thread is stuck in a store that does not answer

 public:
  // The calls of one communicator.
  struct Calls {
    std::string key;
    std::vector<int> ranks;  // of the job
    uint64_t number = 0;     // of the newest call
  };

  // While it lives, the rank is reported as waiting in `operation`, and a verdict calls `abort` (from another thread),
  // which must make the wait end.
  class Waiting {
   public:
    Waiting(Watchdog& watchdog, Operation operation, std::function<void()> abort);
    ~Waiting();
    Waiting(const Waiting&) = delete;

   private:
    friend class Watchdog;
    std::shared_ptr<Shared> shared_;
    Operation operation_;
    std::function<void()> abort_;
  };

  // Waits until all ranks are here, then begins to beat; after `start_timeout` throws PeerLostError, naming those that
  // did not come. A UserError if another process is this rank already. `store`: a client of its own (a clone), used by
  // the watchdog's thread alone. `store_name`: see describe_store(). `serves_store`: this process serves it, and must
  // stay until the others have read the last word.
  Watchdog(c10::intrusive_ptr<c10d::Store> store, std::string store_name, bool serves_store, int rank, int world_size,
           WatchdogOptions options, std::chrono::milliseconds start_timeout);
  ~Watchdog();
  // Ends the beat. Without finish() or stop() before, the others learn that this rank stopped. Called by the destructor
  // too.
  void end() noexcept;

  // A new communicator among these ranks, which all call this in the same order.
  std::shared_ptr<Calls> watch(const std::string& axis, std::vector<int> ranks);
  // Numbers a new call. Throws PeerLostError if there is a verdict.
  Operation call(Calls& calls, const char* name);

  // In `operation`, something came from each of `peers`, ranks of the job: they have called it.
  void heard(const Operation& operation, const std::vector<int>& peers);

  // A collective failed: finds the verdict, within lost_after_failure_beats and a little, and throws it.
  [[noreturn]] void fail(const Failure& failure);

  // While the returned handle lives, `overdue` is asked once a beat, from another thread, for a collective that failed
  // or takes too long. For transports whose waits do not block. It may hang; what it throws is a failure; it
  // must not call the watchdog.
  std::shared_ptr<void> supervise(std::function<std::optional<Failure>()> overdue);

  // Tells the others why this rank leaves.
  void stop(const std::string& reason) noexcept;
  // Returns when all ranks are here: afterwards none needs another. Throws PeerLostError if one is lost instead.
  void finish();

 private:
  std::shared_ptr<Shared> shared_;
  std::thread heart_;
  std::thread monitor_;
  std::thread supervisor_;  // where something is supervised
};

}  // namespace conclave

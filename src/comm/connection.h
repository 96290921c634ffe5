// What the exchanges of one communicator share: the ways to the other ranks, and what becomes of a failure.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <chrono>
#include <memory>
#include <mutex>

#include "comm/memory_link.h"
#include "comm/watchdog.h"

namespace conclave {

struct Connection {
  int place = 0;                            // of this rank in the group
  c10::intrusive_ptr<c10d::Backend> group;  // null where every rank of the group is reached by the link
  std::mutex group_mutex;                   // the group counts its calls without a lock
  std::shared_ptr<MemoryLink> link;         // null: there is none
  std::shared_ptr<Watchdog> watchdog;       // null: nobody watches the ranks, as those of a script
  std::shared_ptr<Watchdog::Calls> calls;
  std::chrono::milliseconds timeout;

  // Numbers a new call. Throws PeerLostError if the watchdog has a verdict.
  Operation call(const char* name) const;
  // Throws PeerLostError: the watchdog's verdict, else what this rank alone knows.
  [[noreturn]] void fail(const Failure& failure) const;
  // An exception takes this rank away: the others learn of it, where somebody watches.
  void stop() const noexcept;
};

}  // namespace conclave

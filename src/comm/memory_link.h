// Messages between processes of one host, which read each other's memory (process_vm_readv(2), "cross-memory attach"):
// one copy, where a socket needs two, several threads' wake-ups and their time. A sender leaves a note of where its
// message lies in the receiver's mailbox; whoever of the receiver's threads sees it reads the message to where it
// belongs, and marks the note.
//
// A message moves once it is sent and its receive is posted, whoever waits for what: a thread of the link's own, the
// mover, works where no other thread waits.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/mailbox.h"
#include "comm/memory_peer.h"
#include "comm/process.h"

namespace conclave {

class MemoryLink {
 public:
  // Tells in `store` where this process is to be found, as all ranks do. Null where the system does not offer what it
  // takes, or no other rank is on this host.
  static std::unique_ptr<MemoryLink> open(const Process& process, c10d::Store& store);
  // Tells that this rank has none.
  static void decline(int rank, c10d::Store& store);
  ~MemoryLink();
  MemoryLink(const MemoryLink&) = delete;

  // Finds out which of `ranks`, which meet this rank at the same time, it reaches: they are on one host, and the system
  // lets each read the other's memory. `store`: as for open(). Throws the store's error when one does not come. True if
  // every one of `ranks` reaches every other.
  bool meet(const std::vector<int>& ranks, c10d::Store& store);
  bool reaches(int rank) const;                       // whom it has met
  int64_t bytes_read() const { return bytes_read_; }  // of the messages of others

  struct Transfer;
  // `bytes` > 0 at `data` for the rank, which must be reached, as message `number` of the `channel`. Both sides name a
  // message alike, and use a name once. The data must stay as it is until the transfer is done.
  std::shared_ptr<Transfer> send(int rank, const std::string& channel, uint64_t number, const void* data,
                                 int64_t bytes);
  std::shared_ptr<Transfer> receive(int rank, const std::string& channel, uint64_t number, void* data, int64_t bytes);

  enum class Outcome { done, failed, timed_out, interrupted, peer_ended };
  // Sleeps until the transfer is done, or `interrupted` is set and interrupt() called.
  Outcome wait(const Transfer& transfer, std::chrono::steady_clock::time_point deadline,
               const std::atomic<bool>& interrupted);
  void interrupt() { own_.ring(); }
  // Afterwards nobody reads or writes the transfer's data.
  void withdraw(const std::shared_ptr<Transfer>& transfer);

 private:
  MemoryPeer* peer_at(int rank) const;  // null: out of reach
  struct Found {
    Mailbox::Note* note;
    std::shared_ptr<Transfer> receive;
  };
  MemoryLink(const Process& process, c10d::Store& store);
  std::unique_ptr<MemoryPeer> probe(int rank, c10d::Store& store);
  void warn(int rank, const std::string& why);
  void run_mover();
  // Does what can be done now. `waiting`: 1 for a thread between begin_waiting() and end_waiting(), else 0.
  void progress(uint32_t waiting);
  std::list<Found> take_what_came();
  void end_what_was_read();
  void post(Transfer& send);
  void read(const Found& found);
  bool try_to_withdraw(const std::shared_ptr<Transfer>& transfer);

  int rank_, local_rank_, world_size_;
  Mailbox own_;
  const uint64_t sample_;  // that peers read to see whether they can
  bool has_warned_ = false;

  mutable std::mutex mutex_;
  std::map<int, std::unique_ptr<MemoryPeer>> peers_;       // by rank; null: out of reach
  std::list<std::shared_ptr<Transfer>> sends_, receives_;  // not done yet, nor taken
  std::atomic<int64_t> bytes_read_ = 0;
  std::atomic<bool> ending_ = false;
  std::thread mover_;
};

}  // namespace conclave

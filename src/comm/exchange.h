// The sends and receives of one collective, in flight in the transport's thread from the moment they are added. Ranks
// of one host read each other's memory where they can, others use Gloo.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "comm/connection.h"

namespace conclave {

class Exchange {
 public:
  // `phase` 0 or 1: a collective may consist of two exchanges. `tensors` are kept alive as long as the exchange.
  Exchange(std::shared_ptr<Connection> connection, Operation operation, int phase, std::vector<at::Tensor> tensors);
  // Without wait(): the data of transfers that are not done is left alone from now on.
  ~Exchange();
  Exchange(const Exchange&) = delete;

  // Nothing happens for zero bytes. `peer`: place in the group.
  void send(const void* data, int64_t bytes, int peer);
  void receive(void* data, int64_t bytes, int peer);

  // Sleeps until all data has left and arrived. Throws PeerLostError.
  void wait();

 private:
  struct Transfer {
    c10::intrusive_ptr<c10d::Work> work;
    int peer;
    bool sends;
  };
  struct LinkTransfer {
    std::shared_ptr<MemoryLink::Transfer> transfer;
    int peer;
    bool sends;
  };
  void add(void* data, int64_t bytes, int peer, bool sends);
  bool add_to_link(void* data, int64_t bytes, int peer, bool sends);
  void wait_for_link(std::chrono::steady_clock::time_point start);
  void wait_for_sockets(std::chrono::steady_clock::time_point start);
  [[noreturn]] void fail(int peer, double waited_seconds, bool timed_out, const char* error);

  std::shared_ptr<Connection> connection_;
  Operation operation_;
  int tag_;
  std::vector<at::Tensor> tensors_;
  std::vector<Transfer> transfers_;  // destroyed before the tensors
  std::vector<LinkTransfer> link_transfers_;
  std::atomic<bool> interrupted_ = false;
};

}  // namespace conclave

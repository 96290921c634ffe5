#include "comm/exchange.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace conclave {

using Clock = std::chrono::steady_clock;

Exchange::Exchange(std::shared_ptr<Connection> connection, Operation operation, int phase,
                   std::vector<at::Tensor> tensors)
    : connection_(std::move(connection)),
      operation_(std::move(operation)),
      tag_(static_cast<int>((2 * operation_.number + phase) & 0x7fffffff)),
      tensors_(std::move(tensors)) {}

void Exchange::send(const void* data, int64_t bytes, int peer) {
  add(const_cast<void*>(data), bytes, peer, true);
}
void Exchange::receive(void* data, int64_t bytes, int peer) {
  add(data, bytes, peer, false);
}

void Exchange::add(void* data, int64_t bytes, int peer, bool sends) {
  if (bytes == 0) return;
  std::vector<at::Tensor> view{at::from_blob(data, {bytes}, at::kByte)};
  try {
    std::lock_guard lock(connection_->group_mutex);
    transfers_.push_back(
        {sends ? connection_->group->send(view, peer, tag_) : connection_->group->recv(view, peer, tag_), peer});
  } catch (const std::exception& error) {
    fail(peer, 0, false, error.what());
  }
}

void Exchange::wait() {
  const auto start = Clock::now();
  {
    Watchdog::Waiting waiting(*connection_->watchdog, operation_, [this] {
      for (const Transfer& transfer : transfers_) transfer.work->abort();
    });
    for (const Transfer& transfer : transfers_) {
      const auto left =
          connection_->timeout - std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start);
      std::string error = "the wait was ended";
      bool done = false;
      try {
        done = transfer.work->wait(std::max(left, std::chrono::milliseconds(1)));
      } catch (const std::exception& caught) {
        error = caught.what();
      }
      const auto waited = Clock::now() - start;
      if (!done)
        fail(transfer.peer, std::chrono::duration<double>(waited).count(), waited >= connection_->timeout,
             error.c_str());
    }
  }
  transfers_.clear();
}

void Exchange::fail(int peer, double waited_seconds, bool timed_out, const char* error) {
  connection_->watchdog->fail({operation_, connection_->calls->ranks[peer], timed_out, waited_seconds, error});
}

}  // namespace conclave

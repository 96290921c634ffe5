#include "comm/exchange.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

namespace conclave {

using Clock = std::chrono::steady_clock;

// A script may send by itself over its group, with tags that are small as a rule.
constexpr int first_tag = 1 << 30;

Exchange::Exchange(std::shared_ptr<Connection> connection, Operation operation, int phase,
                   std::vector<at::Tensor> tensors)
    : connection_(std::move(connection)),
      operation_(std::move(operation)),
      tag_(first_tag | static_cast<int>((2 * operation_.number + phase) & (first_tag - 1))),
      tensors_(std::move(tensors)) {}

Exchange::~Exchange() {
  for (const LinkTransfer& each : link_transfers_) connection_->link->withdraw(each.transfer);
}

void Exchange::send(const void* data, int64_t bytes, int peer) {
  add(const_cast<void*>(data), bytes, peer, true);
}
void Exchange::receive(void* data, int64_t bytes, int peer) {
  add(data, bytes, peer, false);
}

void Exchange::add(void* data, int64_t bytes, int peer, bool sends) {
  if (bytes == 0 || add_to_link(data, bytes, peer, sends)) return;
  std::vector<at::Tensor> view{at::from_blob(data, {bytes}, at::kByte)};
  try {
    std::lock_guard lock(connection_->group_mutex);
    transfers_.push_back(
        {sends ? connection_->group->send(view, peer, tag_) : connection_->group->recv(view, peer, tag_), peer, sends});
  } catch (const std::exception& error) {
    fail(peer, 0, false, error.what());
  }
}

bool Exchange::add_to_link(void* data, int64_t bytes, int peer, bool sends) {
  MemoryLink* link = connection_->link.get();
  const int rank = connection_->calls->ranks[peer];
  if (link == nullptr || !link->reaches(rank)) return false;
  const std::string& channel = connection_->calls->key;
  link_transfers_.push_back(
      {sends ? link->send(rank, channel, tag_, data, bytes) : link->receive(rank, channel, tag_, data, bytes), peer,
       sends});
  return true;
}

void Exchange::wait_for_link(Clock::time_point start) {
  using enum MemoryLink::Outcome;
  for (const LinkTransfer& each : link_transfers_) {
    const auto outcome = connection_->link->wait(*each.transfer, start + connection_->timeout, interrupted_);
    if (outcome == done) continue;
    const double waited = std::chrono::duration<double>(Clock::now() - start).count();
    const char* error = outcome == peer_ended ? "its process has ended"
                        : outcome == failed   ? "its memory cannot be read, or its message has another size"
                                              : "the wait was ended";
    fail(each.peer, waited, outcome == timed_out, error);
  }
}

void Exchange::wait_for_sockets(Clock::time_point start) {
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
      fail(transfer.peer, std::chrono::duration<double>(waited).count(), waited >= connection_->timeout, error.c_str());
  }
}

void Exchange::wait() {
  const auto start = Clock::now();
  {
    std::optional<Watchdog::Waiting> waiting;
    if (connection_->watchdog)
      waiting.emplace(*connection_->watchdog, operation_, [this] {
        interrupted_ = true;
        if (connection_->link) connection_->link->interrupt();
        for (const Transfer& transfer : transfers_) transfer.work->abort();
      });
    wait_for_link(start);
    wait_for_sockets(start);
  }
  if (connection_->watchdog) {
    std::vector<int> came_from;
    const auto note = [&](const auto& transfer) {
      if (!transfer.sends) came_from.push_back(connection_->calls->ranks[transfer.peer]);
    };
    for (const LinkTransfer& each : link_transfers_) note(each);
    for (const Transfer& each : transfers_) note(each);
    connection_->watchdog->heard(operation_, came_from);
  }
  link_transfers_.clear();
  transfers_.clear();
}

void Exchange::fail(int peer, double waited_seconds, bool timed_out, const char* error) {
  connection_->fail({operation_, connection_->calls->ranks[peer], timed_out, waited_seconds, error});
}

}  // namespace conclave

#include "comm/memory_link.h"

#include <fmt/format.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "comm/process_state.h"

namespace conclave {

using Clock = std::chrono::steady_clock;

struct MemoryLink::Transfer {
  Transfer(const MemoryPeer* peer, std::string channel, uint64_t number, char* data, int64_t bytes)
      : peer(peer), channel(std::move(channel)), number(number), data(data), bytes(bytes) {}

  const MemoryPeer* peer;
  std::string channel;
  uint64_t number;
  char* data;
  int64_t bytes;
  Mailbox::Note* note = nullptr;  // of a send
  std::atomic<bool> done = false, failed = false;
};

namespace {

std::string key(int rank) {
  return fmt::format("memory_link/{}", rank);
}
std::string answer_key(int rank, int asked_for) {
  return fmt::format("memory_link/{}/{}", rank, asked_for);
}

}  // namespace

std::unique_ptr<MemoryLink> MemoryLink::open(const Process& process, c10d::Store& store) {
  try {
    if (process.local_world_size > 1) return std::unique_ptr<MemoryLink>(new MemoryLink(process, store));
  } catch (const std::system_error&) {  // of a system call that is not there or not allowed
  }
  decline(process.rank, store);
  return nullptr;
}

// The others need not wait for its address.
void MemoryLink::decline(int rank, c10d::Store& store) {
  store.set(key(rank), MemoryAddress().text());
}

MemoryLink::MemoryLink(const Process& process, c10d::Store& store)
    : rank_(process.rank),
      local_rank_(process.local_rank),
      world_size_(process.world_size),
      own_(world_size_),
      sample_(std::random_device{}() | uint64_t{std::random_device{}()} << 32) {
  // Where Yama restricts whose memory a process may read, the ranks of a job are strangers to each other.
  ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
  store.set(key(rank_), MemoryAddress::of_this_process(own_, sample_).text());
  mover_ = std::thread([this] { run_mover(); });
}

MemoryLink::~MemoryLink() {
  ending_ = true;
  own_.ring();
  mover_.join();
}

std::unique_ptr<MemoryPeer> MemoryLink::probe(int rank, c10d::Store& store) {
  const MemoryAddress address = MemoryAddress::parse(store.get_to_str(key(rank)));
  if (address.host.empty() || address.host != name_of_host()) return nullptr;
  try {
    return std::make_unique<MemoryPeer>(rank, address, world_size_);
  } catch (const std::system_error& error) {
    warn(rank, error.what());
    return nullptr;
  }
}

// One rank of the host for all.
void MemoryLink::warn(int rank, const std::string& why) {
  if (local_rank_ == 0 && !std::exchange(has_warned_, true))
    spdlog::warn(
        "this rank ({}) cannot read the memory of rank {} on this host ({}), so they talk through sockets, which takes "
        "several times as long; the system must allow process_vm_readv(2) between them",
        rank_, rank, why);
}

// Who finds a rank asks whether that rank finds it, too: the system may let only one read the other's memory.
bool MemoryLink::meet(const std::vector<int>& ranks, c10d::Store& store) {
  std::map<int, std::unique_ptr<MemoryPeer>> met;
  for (const int rank : ranks) {
    if (rank == rank_ || peers_.contains(rank)) continue;
    met[rank] = probe(rank, store);
    store.set(answer_key(rank_, rank), met[rank] ? "yes" : "no");
  }
  for (auto& [rank, peer] : met)
    if (peer && store.get_to_str(answer_key(rank, rank_)) != "yes") peer.reset();
  {
    std::lock_guard lock(mutex_);
    peers_.merge(met);
  }
  const bool reaches_all =
      std::all_of(ranks.begin(), ranks.end(), [&](int rank) { return rank == rank_ || reaches(rank); });
  const auto key_of = [&](int rank) {
    return fmt::format("memory_link/{}/all/{}-{}/{}", rank, ranks.front(), ranks.back(), ranks.size());
  };
  store.set(key_of(rank_), reaches_all ? "yes" : "no");
  // One that reaches none has no link, and does not answer; but then nobody reaches it.
  return reaches_all && std::all_of(ranks.begin(), ranks.end(),
                                    [&](int rank) { return rank == rank_ || store.get_to_str(key_of(rank)) == "yes"; });
}

MemoryPeer* MemoryLink::peer_at(int rank) const {
  std::lock_guard lock(mutex_);
  const auto peer = peers_.find(rank);
  return peer == peers_.end() ? nullptr : peer->second.get();
}

bool MemoryLink::reaches(int rank) const {
  return peer_at(rank) != nullptr;
}

std::shared_ptr<MemoryLink::Transfer> MemoryLink::send(int rank, const std::string& channel, uint64_t number,
                                                       const void* data, int64_t bytes) {
  check_invariant(channel.size() < sizeof(Mailbox::Note::channel), "the name of the channel \"{}\" is too long",
                  channel);
  auto transfer =
      std::make_shared<Transfer>(peer_at(rank), channel, number, static_cast<char*>(const_cast<void*>(data)), bytes);
  std::lock_guard lock(mutex_);
  post(*transfer);
  sends_.push_back(transfer);
  return transfer;
}

// Nothing while all notes are taken: progress() tries again.
void MemoryLink::post(Transfer& send) {
  for (Mailbox::Note& note : send.peer->mailbox().notes_from(rank_)) {
    if (note.state.load() != Mailbox::State::free) continue;
    std::memcpy(note.channel.data(), send.channel.c_str(), send.channel.size() + 1);
    note.number = send.number;
    note.data = send.data;
    note.bytes = send.bytes;
    note.state.store(Mailbox::State::posted);
    send.note = &note;
    send.peer->mailbox().ring();
    return;
  }
}

std::shared_ptr<MemoryLink::Transfer> MemoryLink::receive(int rank, const std::string& channel, uint64_t number,
                                                          void* data, int64_t bytes) {
  auto transfer = std::make_shared<Transfer>(peer_at(rank), channel, number, static_cast<char*>(data), bytes);
  {
    std::lock_guard lock(mutex_);
    receives_.push_back(transfer);
  }
  progress(/*waiting=*/0);
  return transfer;
}

std::list<MemoryLink::Found> MemoryLink::take_what_came() {
  using enum Mailbox::State;
  std::list<Found> found;
  std::erase_if(receives_, [&](const std::shared_ptr<Transfer>& receive) {
    for (Mailbox::Note& note : own_.notes_from(receive->peer->rank())) {
      auto state = posted;
      if (note.state.load() != posted || note.number != receive->number || receive->channel != note.channel.data() ||
          !note.state.compare_exchange_strong(state, taken))
        continue;
      found.push_back({&note, receive});
      return true;
    }
    return false;
  });
  return found;
}

void MemoryLink::end_what_was_read() {
  std::erase_if(sends_, [](const std::shared_ptr<Transfer>& send) {
    if (send->note == nullptr || send->note->state.load() != Mailbox::State::read) return false;
    send->note->state.store(Mailbox::State::free);
    send->done = true;
    return true;
  });
  for (const auto& send : sends_)
    if (send->note == nullptr) post(*send);
}

void MemoryLink::read(const Found& found) {
  Transfer& receive = *found.receive;
  // Ranks that disagree about the size of a message have called different collectives. Of a process that has ended, the
  // number may be another one's by now.
  receive.failed = found.note->bytes != receive.bytes ||
                   !receive.peer->read(receive.data, found.note->data, receive.bytes) || receive.peer->has_ended();
  if (!receive.failed) bytes_read_ += receive.bytes;
  receive.done = true;
  found.note->state.store(Mailbox::State::read);
  receive.peer->mailbox().ring();
}

void MemoryLink::progress(uint32_t waiting) {
  std::list<Found> found;
  {
    std::lock_guard lock(mutex_);
    found = take_what_came();
    end_what_was_read();
  }
  for (const Found& each : found) read(each);
  if (!found.empty()) own_.ring_if_more_wait(waiting);
}

void MemoryLink::run_mover() {
  while (true) {
    const uint32_t seen = own_.rings();
    if (ending_) return;  // set before the ring: not seen here, it is a ring since `seen`
    progress(/*waiting=*/0);
    own_.sleep(seen, Mailbox::Sleeper::mover, std::chrono::seconds(1));
  }
}

MemoryLink::Outcome MemoryLink::wait(const Transfer& transfer, Clock::time_point deadline,
                                     const std::atomic<bool>& interrupted) {
  using std::chrono::nanoseconds;
  constexpr nanoseconds between_looks = std::chrono::milliseconds(100);  // whether the peer lives
  if (transfer.done && !transfer.failed) return Outcome::done;
  own_.begin_waiting();
  uint32_t seen = 0;
  const Outcome outcome = [&] {
    while (true) {
      seen = own_.rings();
      progress(/*waiting=*/1);
      if (transfer.done) return transfer.failed ? Outcome::failed : Outcome::done;
      if (interrupted) return Outcome::interrupted;
      const auto left = std::chrono::duration_cast<nanoseconds>(deadline - Clock::now());
      if (left <= nanoseconds::zero()) return Outcome::timed_out;
      if (transfer.peer->has_ended()) {  // perhaps after its part was done
        progress(/*waiting=*/1);
        return transfer.done && !transfer.failed ? Outcome::done : Outcome::peer_ended;
      }
      own_.sleep(seen, Mailbox::Sleeper::waiter, std::min(left, between_looks));
    }
  }();
  own_.end_waiting(seen);
  return outcome;
}

void MemoryLink::withdraw(const std::shared_ptr<Transfer>& transfer) {
  const bool is_send = transfer->note != nullptr;
  while (!try_to_withdraw(transfer) && !(is_send && transfer->peer->has_ended()))
    std::this_thread::sleep_for(std::chrono::microseconds(100));  // it is being read
}

bool MemoryLink::try_to_withdraw(const std::shared_ptr<Transfer>& transfer) {
  using enum Mailbox::State;
  std::lock_guard lock(mutex_);
  end_what_was_read();
  if (transfer->done || receives_.remove(transfer) > 0) return true;
  if (std::find(sends_.begin(), sends_.end(), transfer) == sends_.end()) return false;
  auto state = posted;
  if (transfer->note != nullptr && !transfer->note->state.compare_exchange_strong(state, free)) return false;
  sends_.remove(transfer);
  return true;
}

}  // namespace conclave

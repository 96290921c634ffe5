#include "comm/memory_link.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <system_error>

#include "base/error.h"

namespace conclave {

using Clock = std::chrono::steady_clock;

struct MemoryLink::Transfer {
  Peer* peer;
  std::string channel;
  uint64_t number;
  char* data;
  int64_t bytes;
  Mailbox::Note* note = nullptr;  // of a send
  std::atomic<bool> done = false, failed = false;
};

struct MemoryLink::Peer {
  Peer(pid_t pid, int local_rank, int mailbox, int senders)
      : pid(pid), local_rank(local_rank), mailbox(pid, mailbox, senders), life(open_life(pid)) {}
  ~Peer() { ::close(life); }
  Peer(const Peer&) = delete;

  static int open_life(pid_t pid) {
    const auto life = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
    if (life < 0) throw std::system_error(errno, std::generic_category(), "pidfd_open");
    return life;
  }
  bool has_ended() const {
    pollfd ended{life, POLLIN, 0};
    return ::poll(&ended, 1, 0) > 0;
  }

  const pid_t pid;
  const int local_rank;
  const Mailbox mailbox;
  const int life;  // a descriptor that is readable when the process has ended
};

namespace {

// Processes with the same text may try to reach each other: one kernel, one view of its processes, and one network,
// which is what a job takes for a host.
std::string name_of_host() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::error_code no_processes, no_network;
  const auto processes = std::filesystem::read_symlink("/proc/self/ns/pid", no_processes);
  const auto network = std::filesystem::read_symlink("/proc/self/ns/net", no_network);
  if (boot.empty() || no_processes || no_network) return "";
  return fmt::format("{} {} {}", boot, processes.string(), network.string());
}

bool read_memory(pid_t pid, void* to, const void* from, int64_t bytes) {
  for (int64_t done = 0; done < bytes;) {
    const iovec own{static_cast<char*>(to) + done, static_cast<size_t>(bytes - done)};
    const iovec other{const_cast<char*>(static_cast<const char*>(from)) + done, own.iov_len};
    const ssize_t count = ::process_vm_readv(pid, &own, 1, &other, 1, 0);
    if (count <= 0) return false;
    done += count;
  }
  return true;
}

// What a rank tells of itself: a line for its host, a line of numbers.
struct Address {
  std::string host;
  pid_t pid = 0;
  int local_rank = 0, mailbox = -1;
  uint64_t sample = 0, sample_at = 0;

  std::string text() const {
    return fmt::format("{}\n{} {} {} {} {}", host, pid, local_rank, mailbox, sample, sample_at);
  }
  static Address parse(const std::string& text) {
    Address address;
    std::istringstream in(text);
    std::getline(in, address.host);
    in >> address.pid >> address.local_rank >> address.mailbox >> address.sample >> address.sample_at;
    return address;
  }
};

std::string key(int rank) {
  return fmt::format("memory_link/{}", rank);
}
std::string answer_key(int rank, int asked_for) {
  return fmt::format("memory_link/{}/{}", rank, asked_for);
}

}  // namespace

std::unique_ptr<MemoryLink> MemoryLink::open(const Process& process, const c10::intrusive_ptr<c10d::Store>& store) {
  try {
    if (process.local_world_size > 1) return std::unique_ptr<MemoryLink>(new MemoryLink(process, store));
  } catch (const std::system_error&) {  // of a system call that is not there or not allowed
  }
  store->set(key(process.rank), Address().text());  // the others need not wait
  return nullptr;
}

MemoryLink::MemoryLink(const Process& process, c10::intrusive_ptr<c10d::Store> store)
    : rank_(process.rank),
      local_rank_(process.local_rank),
      local_size_(process.local_world_size),
      store_(std::move(store)),
      own_(local_size_),
      sample_(std::random_device{}() | uint64_t{std::random_device{}()} << 32) {
  // Where Yama restricts whose memory a process may read, the ranks of a job are strangers to each other.
  ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
  const Address address{name_of_host(), ::getpid(), local_rank_,
                        own_.file(),    sample_,    reinterpret_cast<uint64_t>(&sample_)};
  store_->set(key(rank_), address.text());
  mover_ = std::thread([this] { run_mover(); });
}

MemoryLink::~MemoryLink() {
  ending_ = true;
  own_.ring();
  mover_.join();
}

std::unique_ptr<MemoryLink::Peer> MemoryLink::probe(int rank) {
  const Address address = Address::parse(store_->get_to_str(key(rank)));
  if (address.host.empty() || address.host != name_of_host() || address.local_rank >= local_size_) return nullptr;
  try {
    auto peer = std::make_unique<Peer>(address.pid, address.local_rank, address.mailbox, local_size_);
    uint64_t sample = 0;
    const bool readable =
        read_memory(peer->pid, &sample, reinterpret_cast<const void*>(address.sample_at), sizeof sample);
    return readable && sample == address.sample ? std::move(peer) : nullptr;
  } catch (const std::system_error&) {
    return nullptr;
  }
}

// Who finds a rank asks whether that rank finds it, too: the system may let only one read the other's memory.
void MemoryLink::meet(const std::vector<int>& ranks) {
  std::map<int, std::unique_ptr<Peer>> met;
  for (const int rank : ranks) {
    if (rank == rank_ || peers_.contains(rank)) continue;
    met[rank] = probe(rank);
    store_->set(answer_key(rank_, rank), met[rank] ? "yes" : "no");
  }
  for (auto& [rank, peer] : met)
    if (peer && store_->get_to_str(answer_key(rank, rank_)) != "yes") peer.reset();
  std::lock_guard lock(mutex_);
  peers_.merge(met);
}

bool MemoryLink::reaches(int rank) const {
  const auto peer = peers_.find(rank);
  return peer != peers_.end() && peer->second != nullptr;
}

std::shared_ptr<MemoryLink::Transfer> MemoryLink::send(int rank, const std::string& channel, uint64_t number,
                                                       const void* data, int64_t bytes) {
  check_invariant(channel.size() < sizeof(Mailbox::Note::channel), "the name of the channel \"{}\" is too long",
                  channel);
  auto transfer = std::make_shared<Transfer>(peers_.at(rank).get(), channel, number,
                                             static_cast<char*>(const_cast<void*>(data)), bytes);
  std::lock_guard lock(mutex_);
  post(*transfer);
  sends_.push_back(transfer);
  return transfer;
}

// False: all notes are taken; later, then.
bool MemoryLink::post(Transfer& send) {
  for (Mailbox::Note& note : send.peer->mailbox.notes_from(local_rank_)) {
    if (note.state.load() != Mailbox::State::free) continue;
    std::memcpy(note.channel.data(), send.channel.c_str(), send.channel.size() + 1);
    note.number = send.number;
    note.data = send.data;
    note.bytes = send.bytes;
    note.state.store(Mailbox::State::posted);
    send.note = &note;
    send.peer->mailbox.ring();
    return true;
  }
  return false;
}

std::shared_ptr<MemoryLink::Transfer> MemoryLink::receive(int rank, const std::string& channel, uint64_t number,
                                                          void* data, int64_t bytes) {
  auto transfer = std::make_shared<Transfer>(peers_.at(rank).get(), channel, number, static_cast<char*>(data), bytes);
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
    for (Mailbox::Note& note : own_.notes_from(receive->peer->local_rank)) {
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
  // Ranks that disagree about the size of a message have called different collectives.
  receive.failed = found.note->bytes != receive.bytes ||
                   !read_memory(receive.peer->pid, receive.data, found.note->data, receive.bytes);
  receive.done = true;
  found.note->state.store(Mailbox::State::read);
  receive.peer->mailbox.ring();
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
  while (!ending_) {
    const uint32_t seen = own_.rings();
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
      if (transfer.peer->has_ended()) return Outcome::peer_ended;
      own_.sleep(seen, Mailbox::Sleeper::waiter, std::min(left, between_looks));
    }
  }();
  own_.end_waiting(seen);
  return outcome;
}

void MemoryLink::withdraw(const std::shared_ptr<Transfer>& transfer) {
  while (!try_to_withdraw(transfer) && !transfer->peer->has_ended())
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

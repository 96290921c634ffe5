// One process's mailbox in shared memory: other processes of the host leave notes there of what lies for it in their
// own memory (memory_link.h). One process owns a mailbox, the others open it.
//
// Whoever changes something for the owner rings; the owner sleeps until it is rung. Some of its threads wait for a
// transfer of theirs, one (the mover) works for all: it is woken where nobody waits.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <span>

namespace conclave {

class Mailbox {
 public:
  enum class State : uint32_t {
    free,    // nothing here; the sender may write
    posted,  // a message to read; the sender may withdraw it
    taken,   // being read
    read,    // nobody reads it any more: the sender frees the note
  };

  // Where in its memory a sender has a message, and which: communicators have names of their own, their messages
  // numbers.
  struct alignas(64) Note {
    std::atomic<State> state;
    std::array<char, 60> channel;
    uint64_t number;
    const void* data;
    int64_t bytes;
  };
  static constexpr int notes_of_sender = 64;

  // A new one for `senders` processes. Throws std::system_error.
  explicit Mailbox(int senders);
  // That of another process, which has it as `file`.
  Mailbox(pid_t owner, int file, int senders);
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;

  int file() const { return file_; }
  // Of pages that nobody touches there is no memory, so senders that never come cost none.
  std::span<Note> notes_from(int sender) const;

  uint32_t rings() const { return shared_->rings.load(); }
  void ring() const;
  // Only if more than so many threads wait: by one of the owner's own, for the others.
  void ring_if_more_wait(uint32_t waiters) const {
    if (shared_->waiters.load() > waiters) ring();
  }

  // Owner only. Sleeps unless it was rung since `rings` was `seen`, until it is, or for so long.
  enum class Sleeper : uint32_t { waiter = 1, mover = 2 };
  void sleep(uint32_t seen, Sleeper sleeper, std::chrono::nanoseconds most) const;
  void begin_waiting() const { ++shared_->waiters; }
  // `seen`: the rings that the waiter has seen to. Those since then are the mover's.
  void end_waiting(uint32_t seen) const;

 private:
  struct Shared {
    std::atomic<uint32_t> rings, waiters;
    alignas(64) Note notes[];  // of one sender after the other
  };
  void map(int senders);
  void wake(Sleeper sleeper) const;

  int file_;
  size_t bytes_ = 0;
  Shared* shared_ = nullptr;
};

}  // namespace conclave

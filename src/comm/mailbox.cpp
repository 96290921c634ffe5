#include "comm/mailbox.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>
#include <string>
#include <system_error>

namespace conclave {
namespace {

int checked(int result, const char* what) {
  if (result < 0) throw std::system_error(errno, std::generic_category(), what);
  return result;
}

}  // namespace

// Memory of the kernel is zero: all notes are free.
Mailbox::Mailbox(int senders) : file_(checked(::memfd_create("conclave-mailbox", MFD_CLOEXEC), "memfd_create")) {
  try {
    const size_t bytes = sizeof(Shared) + sizeof(Note) * notes_of_sender * static_cast<size_t>(senders);
    checked(::ftruncate(file_, static_cast<off_t>(bytes)), "ftruncate");
    map(senders);
  } catch (...) {
    ::close(file_);
    throw;
  }
}

Mailbox::Mailbox(pid_t owner, int file, int senders)
    : file_(checked(
          ::open(("/proc/" + std::to_string(owner) + "/fd/" + std::to_string(file)).c_str(), O_RDWR | O_CLOEXEC),
          "open")) {
  try {
    map(senders);
  } catch (...) {
    ::close(file_);
    throw;
  }
}

Mailbox::~Mailbox() {
  ::munmap(shared_, bytes_);
  ::close(file_);
}

void Mailbox::map(int senders) {
  bytes_ = sizeof(Shared) + sizeof(Note) * notes_of_sender * static_cast<size_t>(senders);
  void* memory = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
  if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  shared_ = static_cast<Shared*>(memory);
}

std::span<Mailbox::Note> Mailbox::notes_from(int sender) const {
  return {shared_->notes + static_cast<ptrdiff_t>(sender) * notes_of_sender, notes_of_sender};
}

// A waiter counts itself before it looks for what was changed. So if none is seen here, one that comes now sees the
// change.
void Mailbox::ring() const {
  ++shared_->rings;
  wake(shared_->waiters.load() > 0 ? Sleeper::waiter : Sleeper::mover);
}

void Mailbox::end_waiting(uint32_t seen) const {
  --shared_->waiters;
  if (rings() != seen) wake(Sleeper::mover);
}

void Mailbox::wake(Sleeper sleeper) const {
  ::syscall(SYS_futex, &shared_->rings, FUTEX_WAKE_BITSET, INT_MAX, nullptr, nullptr, static_cast<uint32_t>(sleeper));
}

void Mailbox::sleep(uint32_t seen, Sleeper sleeper, std::chrono::nanoseconds most) const {
  constexpr int64_t second = 1'000'000'000;
  timespec until{};
  ::clock_gettime(CLOCK_MONOTONIC, &until);
  const int64_t nanoseconds = until.tv_nsec + most.count();
  until.tv_sec += nanoseconds / second;
  until.tv_nsec = nanoseconds % second;
  ::syscall(SYS_futex, &shared_->rings, FUTEX_WAIT_BITSET, seen, &until, nullptr, static_cast<uint32_t>(sleeper));
}

}  // namespace conclave

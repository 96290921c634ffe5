#include "comm/memory_peer.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <sstream>
#include <system_error>

#include "comm/process_state.h"

namespace conclave {
namespace {

int open_life(pid_t pid) {
  const auto life = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (life < 0) throw std::system_error(errno, std::generic_category(), "pidfd_open");
  return life;
}

}  // namespace

MemoryAddress MemoryAddress::of_this_process(const Mailbox& mailbox, const uint64_t& sample) {
  return {name_of_host(), ::getpid(), mailbox.file(), sample, reinterpret_cast<uint64_t>(&sample)};
}

// A line for the host, a line of numbers.
std::string MemoryAddress::text() const {
  return fmt::format("{}\n{} {} {} {}", host, pid, mailbox, sample, sample_at);
}

MemoryAddress MemoryAddress::parse(const std::string& text) {
  MemoryAddress address;
  std::istringstream in(text);
  std::getline(in, address.host);
  in >> address.pid >> address.mailbox >> address.sample >> address.sample_at;
  return address;
}

MemoryPeer::MemoryPeer(int rank, const MemoryAddress& address, int senders)
    : rank_(rank), pid_(address.pid), mailbox_(address.pid, address.mailbox, senders), life_(open_life(address.pid)) {
  uint64_t sample = 0;
  errno = 0;
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an address in the other process
  const auto* sample_there = reinterpret_cast<const void*>(address.sample_at);
  if (read(&sample, sample_there, sizeof sample) && sample == address.sample) return;
  const int error = errno;
  ::close(life_);
  throw std::system_error(error, std::generic_category(), "process_vm_readv");
}

MemoryPeer::~MemoryPeer() {
  ::close(life_);
}

bool MemoryPeer::has_ended() const {
  pollfd ended{life_, POLLIN, 0};
  return ::poll(&ended, 1, 0) > 0;
}

bool MemoryPeer::read(void* to, const void* from, int64_t bytes) const {
  for (int64_t done = 0; done < bytes;) {
    const iovec own{static_cast<char*>(to) + done, static_cast<size_t>(bytes - done)};
    const iovec other{const_cast<char*>(static_cast<const char*>(from)) + done, own.iov_len};
    const ssize_t count = ::process_vm_readv(pid_, &own, 1, &other, 1, 0);
    if (count <= 0) return false;
    done += count;
  }
  return true;
}

}  // namespace conclave

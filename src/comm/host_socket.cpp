#include "comm/host_socket.h"

#include <fmt/core.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

namespace conclave {
namespace {

[[noreturn]] void fail(int error, const char* what) {
  throw std::system_error(error, std::generic_category(), what);
}

// A name that begins with a zero byte is in no folder.
struct Address {
  sockaddr_un address{};
  socklen_t length = 0;

  explicit Address(const std::string& name) {
    const std::string text = fmt::format("conclave/{}/{}", ::geteuid(), name);
    if (text.size() + 1 > sizeof address.sun_path) fail(ENAMETOOLONG, "a socket's name");
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, text.data(), text.size());
    length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

HostSocket new_socket() {
  HostSocket made(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!made.is_open()) fail(errno, "socket");
  return made;
}

bool is_of_own_user(const HostSocket& connection) {
  ucred peer{};
  socklen_t length = sizeof peer;
  return ::getsockopt(connection.file(), SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == ::geteuid();
}

}  // namespace

HostSocket::HostSocket(HostSocket&& other) noexcept : file_(std::exchange(other.file_, -1)) {}

HostSocket& HostSocket::operator=(HostSocket&& other) noexcept {
  std::swap(file_, other.file_);
  return *this;
}

HostSocket::~HostSocket() {
  if (is_open()) ::close(file_);
}

HostSocket listen_on_host(const std::string& name) {
  HostSocket listener = new_socket();
  const Address address(name);
  if (::bind(listener.file(), address.get(), address.length) != 0) fail(errno, "bind");
  if (::listen(listener.file(), SOMAXCONN) != 0) fail(errno, "listen");
  return listener;
}

HostSocket accept_own_user(const HostSocket& listener) {
  HostSocket accepted(::accept4(listener.file(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (accepted.is_open() && is_of_own_user(accepted)) return accepted;
  return {};
}

HostSocket connect_on_host(const std::string& name, std::chrono::steady_clock::time_point until) {
  const Address address(name);
  for (auto pause = std::chrono::milliseconds(2);; pause = std::min(2 * pause, std::chrono::milliseconds(100))) {
    HostSocket connection = new_socket();
    if (::connect(connection.file(), address.get(), address.length) == 0) {
      if (is_of_own_user(connection)) return connection;
      fail(EPERM, "the socket of the job's store belongs to another user");
    }
    // EAGAIN: too many knock at once.
    if (errno != ECONNREFUSED && errno != EAGAIN && errno != EINTR) fail(errno, "connect");
    if (std::chrono::steady_clock::now() > until) fail(ETIMEDOUT, "nobody serves it");
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace conclave

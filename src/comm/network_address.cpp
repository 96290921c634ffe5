#include "comm/network_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>

#include "base/error.h"

namespace conclave {
namespace {

std::string source_address_towards(const addrinfo& target) {
  const int socket_fd = ::socket(target.ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (socket_fd < 0) return "";
  sockaddr_storage own{};
  socklen_t length = sizeof own;
  std::array<char, NI_MAXHOST> text{};
  // Connecting a datagram socket only chooses a route.
  const bool found =
      ::connect(socket_fd, target.ai_addr, target.ai_addrlen) == 0 &&
      ::getsockname(socket_fd, reinterpret_cast<sockaddr*>(&own), &length) == 0 &&
      getnameinfo(reinterpret_cast<sockaddr*>(&own), length, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST) == 0;
  ::close(socket_fd);
  return found ? text.data() : "";
}

// The addresses of a name; freed with it.
class Resolved {
 public:
  Resolved(const std::string& host, int port, int type, int flags) {
    addrinfo hints{};
    hints.ai_socktype = type;
    hints.ai_flags = flags;
    status_ = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &first_);
  }
  ~Resolved() {
    if (first_ != nullptr) freeaddrinfo(first_);
  }
  Resolved(const Resolved&) = delete;

  int status() const { return status_; }
  const addrinfo* first() const { return first_; }

 private:
  addrinfo* first_ = nullptr;
  int status_ = 0;
};

}  // namespace

std::string source_address_towards(const std::string& host) {
  const Resolved found(host, 9, SOCK_DGRAM, 0);
  if (found.status() != 0)
    user_error("MASTER_ADDR is \"{}\", which cannot be resolved: {}. Use the address of rank 0's host.", host,
               gai_strerror(found.status()));
  for (const addrinfo* entry = found.first(); entry != nullptr; entry = entry->ai_next)
    if (const std::string address = source_address_towards(*entry); !address.empty()) return address;
  user_error("no network interface of this host leads to MASTER_ADDR \"{}\".", host);
}

std::string source_address_of_default_route() {
  // Addresses for documentation (RFC 5737, RFC 3849): nobody has them, so only the default route leads there.
  for (const char* somewhere : {"192.0.2.1", "2001:db8::1"}) {
    const Resolved found(somewhere, 9, SOCK_DGRAM, AI_NUMERICHOST);
    if (found.status() != 0) continue;
    const std::string address = source_address_towards(*found.first());
    if (!address.empty() && !is_loopback(address)) return address;
  }
  return "";
}

bool is_loopback(const std::string& numeric_address) {
  return numeric_address.starts_with("127.") || numeric_address == "::1" || numeric_address.starts_with("::ffff:127.");
}

bool accepts_connections(const std::string& host, int port) {
  const Resolved found(host, port, SOCK_STREAM, 0);
  for (const addrinfo* entry = found.first(); entry != nullptr; entry = entry->ai_next) {
    const int socket_fd = ::socket(entry->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const timeval patience{2, 0};
    ::setsockopt(socket_fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);  // of connect(), too
    const bool accepts = ::connect(socket_fd, entry->ai_addr, entry->ai_addrlen) == 0;
    ::close(socket_fd);
    if (accepts) return true;
  }
  return false;
}

int listen_on_loopback(const std::string& numeric_address, int port) {
  const Resolved found(numeric_address, port, SOCK_STREAM, AI_NUMERICHOST);
  if (found.status() != 0) return -1;
  const int listener = ::socket(found.first()->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (::bind(listener, found.first()->ai_addr, found.first()->ai_addrlen) == 0 && ::listen(listener, SOMAXCONN) == 0)
    return listener;
  ::close(listener);
  return -1;
}

}  // namespace conclave

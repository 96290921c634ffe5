#include "comm/rendezvous.h"

#include <arpa/inet.h>
#include <fmt/core.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "base/error.h"
#include "base/first_line.h"

namespace conclave {
namespace {

// Asks the kernel for a route, by connecting a datagram socket: nothing is sent.
std::string source_address_towards(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (const int status = getaddrinfo(host.c_str(), "9", &hints, &found); status != 0)
    user_error("MASTER_ADDR is \"{}\", which cannot be resolved: {}. Use the address of rank 0's host.", host,
               gai_strerror(status));
  std::string address;
  for (const addrinfo* entry = found; entry != nullptr && address.empty(); entry = entry->ai_next) {
    const int socket_fd = ::socket(entry->ai_family, SOCK_DGRAM, 0);
    if (socket_fd < 0) continue;
    sockaddr_storage own{};
    socklen_t length = sizeof own;
    std::array<char, NI_MAXHOST> text{};
    if (::connect(socket_fd, entry->ai_addr, entry->ai_addrlen) == 0 &&
        ::getsockname(socket_fd, reinterpret_cast<sockaddr*>(&own), &length) == 0 &&
        getnameinfo(reinterpret_cast<sockaddr*>(&own), length, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST) ==
            0)
      address = text.data();
    ::close(socket_fd);
  }
  freeaddrinfo(found);
  if (address.empty()) user_error("no network interface of this host leads to MASTER_ADDR \"{}\".", host);
  return address;
}

}  // namespace

c10::intrusive_ptr<c10d::Store> connect_store(const Process& process, std::chrono::milliseconds timeout) {
  if (process.is_single()) return nullptr;
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(process.master_port);
  options.isServer = process.rank == 0 && !process.launcher_serves_store;
  options.waitWorkers = false;  // World waits, and can name those that do not come
  options.timeout = timeout;
  if (options.isServer && process.store_socket >= 0) options.masterListenFd = process.store_socket;
  c10::intrusive_ptr<c10d::Store> store;
  try {
    store = c10::make_intrusive<c10d::TCPStore>(process.master_address, options);
  } catch (const std::exception& error) {
    const std::string reason = error.what();
    if (options.isServer && reason.find("EADDRINUSE") != std::string::npos)
      user_error(
          "port {} (MASTER_PORT) of this host is in use, so rank 0 cannot serve the store of the job there. Choose "
          "another.",
          process.master_port);
    throw PeerLostError(
        fmt::format("rank {} could not reach {} within {} s: {}", process.rank, describe_store(process),
                    std::chrono::duration_cast<std::chrono::seconds>(timeout).count(), first_line(reason)),
        {0});
  }
  return c10::make_intrusive<c10d::PrefixStore>(
      fmt::format("conclave/{}/{}", process.restart_count, process.world_size), store);
}

std::string describe_store(const Process& process) {
  return fmt::format("the store at {}:{} served by {}", process.master_address, process.master_port,
                     process.launcher_serves_store ? "torchrun on rank 0's host" : "rank 0");
}

std::string address_for_peers(const Process& process) {
  if (process.is_one_host()) return "127.0.0.1";
  std::string address = source_address_towards(process.master_address);
  if (address.starts_with("127.") || address == "::1")
    user_error(
        "MASTER_ADDR is \"{}\", which on this host is the loopback address {}: ranks of other hosts cannot reach it. "
        "Set MASTER_ADDR to an address that they can reach, or GLOO_SOCKET_IFNAME to the network interface to use.",
        process.master_address, address);
  return address;
}

}  // namespace conclave

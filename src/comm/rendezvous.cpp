#include "comm/rendezvous.h"

#include <c10/util/Logging.h>
#include <fmt/core.h>

#include <cerrno>
#include <cstdlib>
#include <future>
#include <memory>
#include <system_error>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "base/error.h"
#include "base/first_line.h"
#include "comm/host_store.h"
#include "comm/host_store_server.h"
#include "comm/network_address.h"
#include "comm/signed_store.h"

namespace conclave {
namespace {

using Store = c10::intrusive_ptr<c10d::Store>;

bool serves_store(const Process& process) {
  return process.rank == 0 && !process.launcher_serves_store;
}

[[noreturn]] void refuse_port(const Process& process) {
  user_error(
      "port {} (MASTER_PORT) of this host is in use, so rank 0 cannot serve the store of the job there. Choose "
      "another.",
      process.master_port);
}

[[noreturn]] void give_up(const Process& process, std::chrono::milliseconds timeout, const std::string& why) {
  throw PeerLostError(fmt::format("rank {} could not reach {} within {} s: {}", process.rank, describe_store(process),
                                  std::chrono::duration_cast<std::chrono::seconds>(timeout).count(), first_line(why)),
                      {0});
}

Store connect_on_this_host(const Process& process, std::chrono::milliseconds timeout) {
  std::shared_ptr<HostStoreServer> server;
  try {
    if (serves_store(process)) server = std::make_shared<HostStoreServer>(process.meeting);
    return c10::make_intrusive<HostStore>(process.meeting, server, timeout);
  } catch (const std::system_error& error) {
    if (error.code().value() == EADDRINUSE && process.master_port != 0) refuse_port(process);
    give_up(process, timeout, error.what());
  }
}

// Made in a thread of its own: something else that listens on the port may accept and never answer, and c10d would wait
// for its words for ever.
Store connect_within(const Process& process, const c10d::TCPStoreOptions& options) {
  std::promise<Store> promise;
  std::future<Store> made = promise.get_future();
  std::thread([promise = std::move(promise), address = process.master_address, options]() mutable {
    try {
      promise.set_value(c10::make_intrusive<c10d::TCPStore>(address, options));
    } catch (...) {
      promise.set_exception(std::current_exception());
    }
  }).detach();
  // c10d keeps to the time-out where nobody listens.
  if (made.wait_for(options.timeout + std::chrono::seconds(1)) == std::future_status::ready) return made.get();
  throw std::runtime_error(accepts_connections(process.master_address, process.master_port)
                               ? "what listens there accepts connections but does not answer as a store does"
                               : "nobody listens there");
}

// While it lives, c10d prints no errors of its own, with their stacks: they are told in our words.
class QuietC10d {
 public:
  QuietC10d() {
    if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
  }
  ~QuietC10d() { FLAGS_caffe2_log_level = before_; }
  QuietC10d(const QuietC10d&) = delete;

 private:
  const int before_ = FLAGS_caffe2_log_level;
};

Store connect_over_network(const Process& process, std::chrono::milliseconds timeout) {
  auto secret = secret_of_job();  // a mistake in it is refused before anybody waits
  const QuietC10d quiet;
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(process.master_port);
  options.isServer = serves_store(process);
  options.waitWorkers = false;  // World waits, and can name those that do not come
  options.timeout = timeout;
  // c10d would listen on every interface.
  if (options.isServer && is_loopback(process.master_address)) {
    const int listener = listen_on_loopback(process.master_address, process.master_port);
    if (listener < 0) refuse_port(process);
    options.masterListenFd = listener;
  }
  Store store;
  try {
    store = connect_within(process, options);
  } catch (const std::exception& error) {
    const std::string reason = error.what();
    if (options.isServer && reason.find("EADDRINUSE") != std::string::npos) refuse_port(process);
    source_address_towards(process.master_address);  // a name that cannot be resolved is a mistake of its own
    give_up(process, timeout, reason);
  }
  if (secret) store = c10::make_intrusive<SignedStore>(store, *std::move(secret));
  return store;
}

}  // namespace

Store connect_store(const Process& process, std::chrono::milliseconds timeout) {
  if (process.is_single()) return nullptr;
  const Store store =
      process.meeting.empty() ? connect_over_network(process, timeout) : connect_on_this_host(process, timeout);
  return c10::make_intrusive<c10d::PrefixStore>(
      fmt::format("conclave/{}/{}", process.restart_count, process.world_size), store);
}

std::string describe_store(const Process& process) {
  if (!process.meeting.empty()) return "the store on this host served by rank 0";
  const bool is_ipv6 = process.master_address.find(':') != std::string::npos;
  return fmt::format("the store at {}{}{}:{} served by {}", is_ipv6 ? "[" : "", process.master_address,
                     is_ipv6 ? "]" : "", process.master_port,
                     process.launcher_serves_store ? "torchrun on rank 0's host" : "rank 0");
}

std::string address_for_peers(const Process& process) {
  if (process.is_one_host()) return "127.0.0.1";
  const std::string address = source_address_towards(process.master_address);
  if (!is_loopback(address)) return address;
  // Kubeflow tells the pod of rank 0 that the master is localhost; Debian's own name of a host is 127.0.1.1.
  const std::string towards_the_world = process.rank == 0 ? source_address_of_default_route() : "";
  if (!towards_the_world.empty()) return towards_the_world;
  user_error(
      "MASTER_ADDR is \"{}\", which on this host is the loopback address {}: ranks of other hosts cannot reach it. "
      "Set MASTER_ADDR to an address that they can reach, or GLOO_SOCKET_IFNAME to the network interface to use.",
      process.master_address, address);
}

}  // namespace conclave

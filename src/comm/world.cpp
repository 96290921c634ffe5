#include "comm/world.h"

#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include <csignal>
#include <cstdlib>

#include "base/error.h"
#include "comm/device.h"
#include "comm/gloo.h"
#include "comm/gloo_communicator.h"
#include "comm/host_staged_communicator.h"
#include "comm/local_communicator.h"
#include "comm/memory_link.h"
#include "comm/rendezvous.h"

namespace conclave {

namespace {

// c10d warns of each broken connection with a stack trace. The watchdog says the same in one line, so only errors are
// let through, unless the user has set a level.
void quieten_c10d() {
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = c10::GLOG_ERROR;
}

// Gloo writes to its sockets in a way that raises SIGPIPE when the rank at the other end is gone, and that ends a
// process without a word. Ignored, it is an error of the write, which the watchdog explains. A handler that somebody
// has set stays.
void ignore_broken_pipes() {
  struct sigaction standing {};
  sigaction(SIGPIPE, nullptr, &standing);
  if ((standing.sa_flags & SA_SIGINFO) == 0 && standing.sa_handler == SIG_DFL) ::signal(SIGPIPE, SIG_IGN);
}

}  // namespace

World::World(Process process, WorldOptions options) : process_(std::move(process)), options_(options) {
  quieten_c10d();
  if (options_.device.is_cuda()) {
    std::string why_not;
    const CudaPlugin* plugin = load_cuda_plugin(&why_not);
    if (plugin == nullptr) user_error("a CUDA device was asked for, but {}.", why_not);
    plugin->use_device(options_.device.index());
  }
  if (process_.is_single()) return;
  ignore_broken_pipes();
  if (uses_gloo()) gloo_device_ = make_gloo_device(process_);
  store_ = connect_store(process_, options_.timeout);
  if (uses_gloo() && options_.memory_link) memory_link_ = MemoryLink::open(process_, *store_);
  watchdog_ = std::make_shared<Watchdog>(store_->clone(), describe_store(process_),
                                         process_.rank == 0 && !process_.launcher_serves_store, process_.rank,
                                         process_.world_size, options_.watchdog, options_.timeout);
}

World::~World() {
  if (watchdog_) watchdog_->end();
}

std::unique_ptr<Communicator> World::communicator(const AxisGroup& group, const std::string& axis) {
  check_invariant(group.index >= 0 && group.index < group.size() && group.ranks[group.index] == rank(),
                  "a group of the {} axis has rank {} at place {} of {}", axis, rank(), group.index, group.size());
  if (group.size() == 1) return std::make_unique<LocalCommunicator>(axis);
  const auto calls = watchdog_->watch(axis, group.ranks);
  const Operation connecting{calls->key, "connect", 0};
  // c10d offers no way to end a connecting rank: after a verdict the watchdog ends the process.
  const Watchdog::Waiting waiting(*watchdog_, connecting, [] {});
  const auto start = std::chrono::steady_clock::now();
  auto group_store = c10::make_intrusive<c10d::PrefixStore>(calls->key, store_);
  try {
    if (!uses_gloo())
      return load_cuda_plugin(nullptr)->make_communicator(axis, group.index, group.size(), group_store, watchdog_,
                                                          calls, options_.timeout);
    auto connection = std::make_shared<Connection>();
    connection->group = make_gloo_group(*gloo_device_, group_store, group.index, group.size(), options_.timeout);
    if (memory_link_) memory_link_->meet(group.ranks, *store_);
    connection->link = memory_link_;
    connection->watchdog = watchdog_;
    connection->calls = calls;
    connection->timeout = options_.timeout;
    auto host = std::make_unique<GlooCommunicator>(axis, group.index, group.size(), std::move(connection));
    if (options_.device.is_cuda()) return std::make_unique<HostStagedCommunicator>(std::move(host));
    return host;
  } catch (const std::exception& error) {
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
    watchdog_->fail({connecting, -1, /*timed_out=*/true, waited.count(), error.what()});
  }
}

void World::stop(const std::string& reason) noexcept {
  if (watchdog_) watchdog_->stop(reason);
}

void World::finish() {
  if (watchdog_) watchdog_->finish();
}

}  // namespace conclave

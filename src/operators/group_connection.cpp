#include "operators/group_connection.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <torch/csrc/distributed/c10d/debug.h>
#include <algorithm>
#include <atomic>
#include <list>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "base/error.h"
#include "base/log.h"
#include "comm/gloo_communicator.h"

namespace conclave {
namespace {

using Group = c10::intrusive_ptr<c10d::ProcessGroup>;

std::atomic<bool> uses_links = true;

// What this process keeps of a group between the operators' calls.
struct KnownGroup {
  explicit KnownGroup(const Group& group) : group(group) {}

  const c10::weak_intrusive_ptr<c10d::ProcessGroup> group;
  std::mutex mutex;
  // Guarded by the mutex.
  bool has_met = false;
  std::shared_ptr<MemoryLink> link;                               // null: it reaches nobody
  std::map<std::string, std::shared_ptr<Watchdog::Calls>> calls;  // by axis: one group may serve several
};

class KnownGroups {
 public:
  // Never destroyed: at the program's end threads of links may run on. A forked child begins anew, and leaves alone
  // what it has inherited: the links' threads are not there, and a lock may be held by one of them.
  static KnownGroups& of_this_process() {
    static std::atomic<KnownGroups*> known = nullptr;
    KnownGroups* current = known.load();
    while (current == nullptr || current->process_ != ::getpid()) {
      auto* fresh = new KnownGroups;
      if (known.compare_exchange_strong(current, fresh)) return *fresh;
      delete fresh;
    }
    return *current;
  }

  std::shared_ptr<KnownGroup> find(const Group& group) {
    std::list<std::shared_ptr<KnownGroup>> destroyed;  // after the lock is released
    std::lock_guard lock(mutex_);
    std::shared_ptr<KnownGroup> found;
    for (auto each = groups_.begin(); each != groups_.end();) {
      const auto current = each++;
      if ((*current)->group._unsafe_get_target() == group.get()) found = *current;
      if ((*current)->group.expired()) destroyed.splice(destroyed.end(), groups_, current);
    }
    return found ? found : groups_.emplace_back(std::make_shared<KnownGroup>(group));
  }

 private:
  const pid_t process_ = ::getpid();
  std::mutex mutex_;
  std::list<std::shared_ptr<KnownGroup>> groups_;
};

// A part of a store that other threads use, too: who waited in it would keep them out, and perhaps from what another
// rank waits for. A clone is no way out: that of a TCPStore takes five seconds now and then.
class SharedStore final : public c10d::PrefixStore {
 public:
  SharedStore(std::string prefix, c10::intrusive_ptr<c10d::Store> store, std::chrono::milliseconds timeout)
      : PrefixStore(std::move(prefix), std::move(store)), most_(timeout) {}

  std::vector<uint8_t> get(const std::string& key) override {
    const auto until = std::chrono::steady_clock::now() + most_;
    while (!check({key})) {
      if (std::chrono::steady_clock::now() > until)
        throw PeerLostError(fmt::format("nobody wrote {} to the group's store within {} s", key,
                                        std::chrono::duration_cast<std::chrono::seconds>(most_).count()));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return PrefixStore::get(key);
  }

 private:
  const std::chrono::milliseconds most_;
};

// By place in the group.
std::vector<int> ranks_of(c10d::Backend& backend) {
  const auto given = backend.getBackendOptions()->global_ranks_in_group;  // of the group of all ranks: none
  std::vector<int> ranks(given.begin(), given.end());
  if (ranks.empty()) {
    ranks.resize(static_cast<size_t>(backend.getSize()));
    std::iota(ranks.begin(), ranks.end(), 0);
  }
  return ranks;
}

// The store may be older than the group, as torchrun's is, and hold what an earlier group of the same name has left
// there: the ranks agree on a name of their own first, over sockets.
std::shared_ptr<MemoryLink> open_link(const std::string& axis, c10d::ProcessGroup& group,
                                      const std::shared_ptr<Connection>& sockets) {
  const int place = group.getRank();
  uint64_t name = std::random_device{}() | uint64_t{std::random_device{}()} << 32;
  GlooCommunicator(axis, place, group.getSize(), sockets)
      .broadcast(at::from_blob(&name, {sizeof name}, at::kByte), /*root=*/0)
      .wait();
  SharedStore store(fmt::format("conclave/{}", name), group.getStore(), sockets->timeout);

  const std::vector<int>& ranks = sockets->calls->ranks;
  Process process;
  process.rank = ranks[place];
  process.world_size = *std::max_element(ranks.begin(), ranks.end()) + 1;
  process.local_rank = place;  // the group's first one speaks for all
  process.local_world_size = group.getSize();
  std::shared_ptr<MemoryLink> link = MemoryLink::open(process, store);
  if (!link) return nullptr;
  link->meet(ranks, store);
  const bool reaches_any = std::any_of(ranks.begin(), ranks.end(), [&](int rank) { return link->reaches(rank); });
  return reaches_any ? link : nullptr;
}

void set_up_logging_once(int rank, int ranks) {
  [[maybe_unused]] static const bool done = [&] {
    set_up_logging(rank, ranks, LogRanks::all);
    return true;
  }();
}

}  // namespace

c10::intrusive_ptr<c10d::Backend> gloo_of(c10d::ProcessGroup& group) {
  if (c10d::debug_level() == c10d::DebugLevel::Detail) return {};
  const auto devices = group.getDeviceTypes();
  if (std::find(devices.begin(), devices.end(), c10::Device(c10::kCPU)) == devices.end()) return {};
  auto backend = group.getBackend(c10::kCPU);
  return backend->getBackendName() == "gloo" ? backend : nullptr;
}

std::shared_ptr<Connection> connect(const std::string& axis, const Group& group,
                                    c10::intrusive_ptr<c10d::Backend> gloo) {
  const auto known = KnownGroups::of_this_process().find(group);
  auto connection = std::make_shared<Connection>();
  connection->timeout = gloo->getBackendOptions()->timeout;
  connection->group = std::move(gloo);
  connection->place = group->getRank();
  std::lock_guard lock(known->mutex);
  auto& calls = known->calls[axis];
  if (!calls) {
    std::vector<int> ranks = ranks_of(*connection->group);
    std::string key = fmt::format("{}/{}", axis, ranks[0]);
    calls = std::make_shared<Watchdog::Calls>(Watchdog::Calls{std::move(key), std::move(ranks)});
  }
  connection->calls = calls;
  if (!uses_links) return connection;
  if (!known->has_met) {
    set_up_logging_once(calls->ranks[group->getRank()], group->getSize());
    known->link = open_link(axis, *group, connection);
    known->has_met = true;
  }
  connection->link = known->link;
  return connection;
}

void use_memory_links(bool use) {
  uses_links = use;
}

GroupTraffic traffic_of(const Group& group) {
  const auto known = KnownGroups::of_this_process().find(group);
  std::lock_guard lock(known->mutex);
  GroupTraffic traffic;
  for (const auto& [axis, calls] : known->calls)
    traffic.calls += static_cast<int64_t>(std::atomic_ref(calls->number).load());
  if (known->link) traffic.bytes_read = known->link->bytes_read();
  return traffic;
}

}  // namespace conclave

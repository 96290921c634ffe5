#include "comm/world.h"

#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include <xxhash.h>

#include "base/broken_pipes.h"
#include "base/error.h"
#include "base/first_line.h"
#include "comm/cores.h"
#include "comm/foreign_text.h"
#include "comm/gloo.h"
#include "comm/gloo_communicator.h"
#include "comm/host_staged_communicator.h"
#include "comm/local_communicator.h"
#include "comm/memory_link.h"
#include "comm/rendezvous.h"
#include "comm/roll_call.h"

namespace conclave {

namespace {

// c10d warns of each broken connection with a stack trace. The watchdog says the same in one line, so only errors are
// let through, unless the user has set a level.
void quieten_c10d() {
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = c10::GLOG_ERROR;
}

}  // namespace

World::World(Process process, WorldOptions options) : process_(std::move(process)), options_(std::move(options)) {
  if (options_.on_paper) {
    host_of_rank_.resize(static_cast<size_t>(size()));
    for (int rank = 0; rank < size(); ++rank) host_of_rank_[rank] = rank / process_.local_world_size;
    return;
  }
  quieten_c10d();
  if (process_.is_single()) {
    take_place({RankPlace::of_this_process()});
    use_device();
    return;
  }
  ignore_broken_pipes();  // Gloo raises SIGPIPE when a rank is gone; the watchdog explains the error of the write
  store_ = connect_store(process_, options_.timeout);
  watchdog_ = std::make_shared<Watchdog>(store_->clone(), describe_store(process_),
                                         process_.rank == 0 && !process_.launcher_serves_store, process_.rank,
                                         process_.world_size, options_.watchdog, options_.timeout);
  try {
    meet();
  } catch (const std::exception& error) {
    watchdog_->stop(error.what());
    throw;
  }
}

void World::meet() {
  std::vector<RankPlace> places;
  for (const std::string& text : call_roll(*store_, rank(), size(), "place", RankPlace::of_this_process().text()))
    places.push_back(RankPlace::parse(text));
  take_place(places);
  agree_on_device();
  if (!uses_gloo()) return;
  if (options_.memory_link)
    memory_link_ = MemoryLink::open(process_, *store_);
  else
    MemoryLink::decline(rank(), *store_);
}

void World::take_place(const std::vector<RankPlace>& places) {
  host_of_rank_ = number_hosts(places);
  std::vector<Cores> cores;
  size_t place = 0;
  for (int other = 0; other < size(); ++other) {
    if (host_of_rank_[other] != host_of_rank_[rank()]) continue;
    if (other == rank()) place = cores.size();
    cores.push_back(places[other].cores);
  }
  if (!process_.place_is_known) {
    process_.local_rank = static_cast<int>(place);
    process_.local_world_size = static_cast<int>(cores.size());
    process_.place_is_known = true;
  }
  const int asked = threads_asked_for(), share = threads_of(cores, place, process_.cpus_per_rank);
  at::set_num_threads(asked > 0 ? std::min(asked, share) : share);
}

void World::use_device() {
  if (options_.choose) options_.choose(process_, options_);
}

// A host that has no device for its ranks tells the others of it, which might wait for it otherwise.
void World::agree_on_device() {
  auto values = options_.must_agree;
  std::string& kind = values["run.device"];
  std::exception_ptr refusal;
  try {
    use_device();
    kind = c10::DeviceTypeName(options_.device.type(), /*lower_case=*/true);
    if (options_.host_staged) kind += " by way of the host";
  } catch (const UserError& error) {
    refusal = std::current_exception();
    kind = fmt::format("refused ({})", first_line(error.what()));
  }
  agree(values);
  if (refusal) std::rethrow_exception(refusal);
}

// A hash first: the values themselves, of all ranks, are told only where one has others.
void World::agree(const std::map<std::string, std::string>& values) {
  std::string own;
  for (const auto& [name, value] : values) own += fmt::format("{}\t{}\n", name, value);
  const std::string hash = fmt::format("{:016x}", XXH3_64bits(own.data(), own.size()));
  const std::vector<std::string> hashes = call_roll(*store_, rank(), size(), "agree", hash);
  const auto differs = [&](const std::string& other) { return other != hashes[0]; };
  const auto odd = std::find_if(hashes.begin(), hashes.end(), differs);
  if (odd == hashes.end()) return;
  const std::vector<std::string> texts = call_roll(*store_, rank(), size(), "disagree", own);
  std::istringstream first(texts[0]), other(texts[odd - hashes.begin()]);
  for (std::string is, was; std::getline(first, was);)
    if (!std::getline(other, is) || is != was) {
      const size_t tab = was.find('\t');
      user_error(
          "{} is {} on rank 0 but {} on rank {}, and must be the same on all ranks. Give all ranks the same job, "
          "options "
          "and program.",
          was.substr(0, tab), was.substr(tab + 1), is.substr(std::min(is.size(), is.find('\t') + 1)),
          odd - hashes.begin());
    }
  throw ForeignTextError("the roll call", texts[odd - hashes.begin()]);
}

World::~World() {
  if (watchdog_) watchdog_->end();
}

std::unique_ptr<Communicator> World::communicator(const AxisGroup& group, const std::string& axis) {
  check_invariant(group.index >= 0 && group.index < group.size() && group.ranks[group.index] == rank(),
                  "a group of the {} axis has rank {} at place {} of {}", axis, rank(), group.index, group.size());
  if (options_.on_paper) return options_.on_paper(group, axis);
  if (group.size() == 1) return std::make_unique<LocalCommunicator>(axis);
  const auto calls = watchdog_->watch(axis, group.ranks);
  const Operation connecting{calls->key, "connect", 0};
  // c10d offers no way to end a connecting rank: after a verdict the watchdog ends the process.
  const Watchdog::Waiting waiting(*watchdog_, connecting, [] {});
  const auto start = std::chrono::steady_clock::now();
  auto group_store = c10::make_intrusive<c10d::PrefixStore>(calls->key, store_);
  try {
    if (!uses_gloo())
      return options_.make_communicator(axis, group.index, group.size(), group_store, watchdog_, calls,
                                        options_.timeout);
    auto connection = std::make_shared<Connection>();
    connection->place = group.index;
    connection->link = memory_link_;
    const bool all_linked = memory_link_ && memory_link_->meet(group.ranks, *store_);
    // Ranks that all read each other's memory need no socket, and then open none.
    if (!all_linked) connection->group = connect_sockets(group_store, group);
    connection->watchdog = watchdog_;
    connection->calls = calls;
    connection->timeout = options_.timeout;
    auto host = std::make_unique<GlooCommunicator>(axis, group.index, group.size(), std::move(connection));
    if (options_.host_staged) return std::make_unique<HostStagedCommunicator>(std::move(host));
    return host;
  } catch (const std::exception& error) {
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
    watchdog_->fail({connecting, -1, /*timed_out=*/true, waited.count(), error.what()});
  }
}

c10::intrusive_ptr<c10d::Backend> World::connect_sockets(const c10::intrusive_ptr<c10d::Store>& store,
                                                         const AxisGroup& group) {
  if (!gloo_device_) gloo_device_ = make_gloo_device(process_);
  return make_gloo_group(*gloo_device_, store, group.index, group.size(), options_.timeout);
}

void World::stop(const std::string& reason) noexcept {
  if (watchdog_) watchdog_->stop(reason);
}

void World::finish() {
  if (watchdog_) watchdog_->finish();
}

}  // namespace conclave

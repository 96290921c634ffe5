// This rank's world: its connections to the other ranks, and the watch over them. Make one at the start of the program,
// before tensors are used on the device, and finish() it at the end. An exception on the way is told to the others by
// stop(), or, without words, by the destructor.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/process.h"
#include "comm/watchdog.h"
#include "mesh/layout.h"

namespace conclave {

class GlooDevice;
class MemoryLink;
struct RankPlace;

struct WorldOptions {
  at::Device device = at::kCPU;                // of the tensors (see choose_device())
  std::chrono::milliseconds timeout{300'000};  // a collective that takes longer means a lost or hung rank
  WatchdogOptions watchdog;
  // Null: ranks speak by Gloo, host to host.
  std::unique_ptr<Communicator> (*make_communicator)(std::string axis, int rank, int size,
                                                     c10::intrusive_ptr<c10d::Store> store,
                                                     std::shared_ptr<Watchdog> watchdog,
                                                     std::shared_ptr<Watchdog::Calls> calls,
                                                     std::chrono::milliseconds timeout) = nullptr;
  // On paper no rank is met: this makes the communicators.
  std::function<std::unique_ptr<Communicator>(const AxisGroup& group, const std::string& axis)> on_paper = nullptr;
  bool host_staged = false;  // by Gloo, though the tensors are on another device: ranks share a GPU
  bool memory_link = true;   // CPU: ranks of one host read each other's memory where the system lets them
  // Chooses `device` and host_staged once it is known which ranks share this host; else they are as given above.
  std::function<void(const Process& process, WorldOptions& options)> choose = {};
  // What all ranks must be given alike: a name for messages, and its value. Another one on another rank is a UserError.
  std::map<std::string, std::string> must_agree = {};
};

class World {
 public:
  // Meets the other ranks, and sets the threads that this one computes with. Throws PeerLostError, naming them, if they
  // do not come within the time-out.
  World(Process process, WorldOptions options);
  ~World();
  World(const World&) = delete;

  const Process& process() const { return process_; }
  int rank() const { return process_.rank; }
  int size() const { return process_.world_size; }
  at::Device device() const { return options_.device; }
  // Of each rank, the number of its host.
  const std::vector<int>& host_of_rank() const { return host_of_rank_; }

  // Connects this rank with those of `group`. All ranks of the job make their communicators of an axis in the same
  // order; ranks of other groups of the same axis do so at the same time. `axis`: its name, for messages; no blanks.
  // The communicator must not outlive the World.
  std::unique_ptr<Communicator> communicator(const AxisGroup& group, const std::string& axis);

  // Tells the others that this rank leaves because of an error: they end with a PeerLostError that says so.
  void stop(const std::string& reason) noexcept;
  // Waits until all ranks are here. Afterwards no rank needs another one.
  void finish();

 private:
  bool uses_gloo() const { return options_.make_communicator == nullptr; }
  void meet();
  void take_place(const std::vector<RankPlace>& places);
  void use_device();
  void agree_on_device();
  void agree(const std::map<std::string, std::string>& values);
  c10::intrusive_ptr<c10d::Backend> connect_sockets(const c10::intrusive_ptr<c10d::Store>& store,
                                                    const AxisGroup& group);

  Process process_;
  WorldOptions options_;
  std::vector<int> host_of_rank_{0};
  c10::intrusive_ptr<c10d::Store> store_;    // null in a world of one
  std::shared_ptr<Watchdog> watchdog_;       // null in a world of one
  std::shared_ptr<GlooDevice> gloo_device_;  // null as long as nobody needs it
  std::shared_ptr<MemoryLink> memory_link_;
};

}  // namespace conclave

// This rank's world: its connections to the other ranks, and the watch over them. Make one at the start of the program,
// before tensors are used on the device, and finish() it at the end. An exception on the way is told to the others by
// stop(), or, without words, by the destructor.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/process.h"
#include "comm/watchdog.h"
#include "mesh/layout.h"

namespace conclave {

class GlooDevice;
class MemoryLink;

struct WorldOptions {
  at::Device device = at::kCPU;                // CPU: Gloo; CUDA: NCCL (see choose_device())
  std::chrono::milliseconds timeout{300'000};  // a collective that takes longer means a lost or hung rank
  WatchdogOptions watchdog;
  bool host_staged = false;  // CUDA by way of the host and Gloo: ranks share a GPU
  bool memory_link = true;   // CPU: ranks of one host read each other's memory where the system lets them
};

class World {
 public:
  // Meets the other ranks. Throws PeerLostError, naming them, if they do not come within the time-out.
  World(Process process, WorldOptions options);
  ~World();
  World(const World&) = delete;

  const Process& process() const { return process_; }
  int rank() const { return process_.rank; }
  int size() const { return process_.world_size; }
  at::Device device() const { return options_.device; }

  // Connects this rank with those of `group`. All ranks of the job make their communicators of an axis in the same
  // order; ranks of other groups of the same axis do so at the same time. `axis`: its name, for messages; no blanks.
  // The communicator must not outlive the World.
  std::unique_ptr<Communicator> communicator(const AxisGroup& group, const std::string& axis);

  // Tells the others that this rank leaves because of an error: they end with a PeerLostError that says so.
  void stop(const std::string& reason) noexcept;
  // Waits until all ranks are here. Afterwards no rank needs another one.
  void finish();

 private:
  bool uses_gloo() const { return options_.device.is_cpu() || options_.host_staged; }

  Process process_;
  WorldOptions options_;
  c10::intrusive_ptr<c10d::Store> store_;  // null in a world of one
  std::shared_ptr<Watchdog> watchdog_;     // null in a world of one
  std::shared_ptr<GlooDevice> gloo_device_;
  std::shared_ptr<MemoryLink> memory_link_;
};

}  // namespace conclave

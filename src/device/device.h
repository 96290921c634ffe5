// What a rank computes on, as an object: everything that differs between devices and is no kernel (kernels/kernels.h).
// There are three: the CPU, CUDA, and paper (paper_device.h), on which a step is run without computing it. Tensors name
// theirs by PyTorch's at::Device; device_of() is the object behind it.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "base/step_clock.h"
#include "comm/world.h"
#include "device/cuda_plugin.h"
#include "kernels/kernels.h"
#include "memory/offload_medium.h"

namespace conclave {

// What is decided by the kind of device alone.
struct DeviceFacts {
  bool groups_products = false;   // products of few rows go for all of a rank's experts at once (base/cuda_rules.h)
  int64_t expert_chunk_rows = 0;  // rows of one expert that are computed at once (moe/expert_chunks.h)
  int64_t least_spill_rows = 0;   // rows from which lending an expert pays, when nobody says
  bool rounds_when_read = false;  // products round whole experts in fp32 as they read them (kernels/linear.h)
  bool works_by_itself = false;   // while the host goes on: who takes times waits for it first
};
extern const DeviceFacts cpu_facts;
extern const DeviceFacts cuda_facts;

class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceFacts& facts() const = 0;
  virtual const Kernels& kernels() const = 0;

  // Whether products in bf16 are faster than in fp32.
  virtual bool has_fast_bf16() const = 0;
  virtual std::optional<GpuChip> chip() const { return {}; }

  // Of this process: from now on it computes on the device of this number, and reaches other ranks as `world` then
  // says.
  virtual void take(at::Device device, const Process& process, WorldOptions& world) const {}

  // Where layer inputs go that leave the device. `folder`: of scratch files, where it is a disk.
  virtual std::unique_ptr<OffloadMedium> make_offload_medium(const std::filesystem::path& folder) const = 0;

  // uint8 [bytes] of the host that the device copies from and to at full speed, freed with the tensor.
  virtual at::Tensor host_memory(int64_t bytes) const;

  // The host waits until the device has done all its work; until it has done what computes (copies beside it go on).
  virtual void synchronize() const {}
  virtual void finish_computing(at::Device device) const {}
  // Counts the waits of this thread for the device, from zero; null: there are none to count.
  using CountWaits = void (*)(bool on);
  virtual CountWaits count_waits() const { return nullptr; }
  virtual int64_t waits() const { return 0; }

  // The most bytes that tensors have had, and a new start from what they have now.
  virtual int64_t peak_memory() const = 0;
  virtual void reset_peak_memory(at::Device device) const {}

  // Null: a step's clock shows the time of day.
  virtual const TimeSource* time() const { return nullptr; }
};

const Device& device_of(at::Device device);

// From now on tensors of this type are of `device`, which outlives its use; null: as at first.
void use_device(at::DeviceType type, const Device* device);

}  // namespace conclave

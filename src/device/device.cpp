#include "device/device.h"

#include <array>
#include <atomic>

#include "base/error.h"
#include "base/expert_chunk.h"
#include "device/cpu_device.h"
#include "device/cuda_device.h"

namespace conclave {
namespace {

// Of each type of device; null: not set.
constinit std::array<std::atomic<const Device*>, at::COMPILE_TIME_MAX_DEVICE_TYPES> devices{};

}  // namespace

// Least rows of spilling: about the break-even (moe/spill_plan.h) of a CPU core behind a link of a few GB/s with room
// for what it does not count, and that of an H100 behind NVLink.
const DeviceFacts cpu_facts{.expert_chunk_rows = expert_chunk_rows, .least_spill_rows = 128, .rounds_when_read = true};
const DeviceFacts cuda_facts{.groups_products = true,
                             .expert_chunk_rows = expert_chunk_rows_on_cuda,
                             .least_spill_rows = 2048,
                             .works_by_itself = true};

const Device& device_of(at::Device device) {
  static const CpuDevice cpu;
  static const CudaDevice cuda;
  if (const Device* chosen = devices.at(static_cast<size_t>(device.type()))) return *chosen;
  if (device.is_cpu()) return cpu;
  check_invariant(device.is_cuda(), "nothing computes on {}", device.str());
  return cuda;
}

void use_device(at::DeviceType type, const Device* device) {
  devices.at(static_cast<size_t>(type)) = device;
  use_kernels(type, device == nullptr ? nullptr : &device->kernels());
}

}  // namespace conclave

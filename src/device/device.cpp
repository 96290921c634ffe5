#include "device/device.h"

#include <ATen/ATen.h>

#include <array>
#include <atomic>

#include "base/error.h"
#include "device/cpu_device.h"
#include "device/cuda_device.h"

namespace conclave {
namespace {

// Of each type of device; null: not set.
constinit std::array<std::atomic<const Device*>, at::COMPILE_TIME_MAX_DEVICE_TYPES> devices{};

}  // namespace

// Rows of an expert at once bound the buffers between its products. Each chunk reads and writes the gradient of the
// expert's weights once more. A GPU multiplies so fast that with 1024 rows that pass would take as long as the product
// (8 bytes an element at 3.3 TB/s, 2048 operations at 0.8 Pflop/s); with 8192 it is an eighth of it.
// Least rows of spilling: about the break-even (moe/spill_plan.h) of a CPU core behind a link of a few GB/s with room
// for what it does not count, and that of an H100 behind NVLink.
const DeviceFacts cpu_facts{.expert_chunk_rows = 1024, .least_spill_rows = 128, .rounds_when_read = true};
const DeviceFacts cuda_facts{
    .groups_products = true, .expert_chunk_rows = 8192, .least_spill_rows = 2048, .works_by_itself = true};

at::Tensor Device::host_memory(int64_t bytes) const {
  return at::empty({bytes}, at::kByte);
}

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

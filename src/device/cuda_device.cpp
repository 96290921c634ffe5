#include "device/cuda_device.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdlib>

#include "base/error.h"
#include "device/choose_device.h"

namespace conclave {
namespace {

const CudaPlugin& plugin() {
  std::string why_not;
  const CudaPlugin* loaded = load_cuda_plugin(&why_not);
  if (loaded == nullptr) user_error("a CUDA device was asked for, but {}.", why_not);
  return *loaded;
}

}  // namespace

const Kernels& CudaDevice::kernels() const {
  const CudaPlugin* loaded = load_cuda_plugin(nullptr);
  return loaded == nullptr ? reference_kernels : *loaded->kernels;
}

std::optional<GpuChip> CudaDevice::chip() const {
  return plugin().chip();
}

void CudaDevice::take(at::Device device, const Process& process, WorldOptions& world) const {
  // NCCL listens, too, and on every host's network unless it is told otherwise.
  if (process.is_one_host()) ::setenv("NCCL_SOCKET_IFNAME", "lo", /*overwrite=*/0);
  plugin().use_device(device.index());
  use_kernels(at::kCUDA, plugin().kernels);
  if (ranks_share_gpus())
    world.host_staged = true;
  else
    world.make_communicator = plugin().make_communicator;
}

std::unique_ptr<OffloadMedium> CudaDevice::make_offload_medium(const std::filesystem::path&) const {
  return plugin().make_pinned_slots();
}

at::Tensor CudaDevice::host_memory(int64_t bytes) const {
  return plugin().pinned_memory(bytes);
}

void CudaDevice::synchronize() const {
  plugin().synchronize();
}

void CudaDevice::finish_computing(at::Device device) const {
  c10::impl::VirtualGuardImpl(at::kCUDA).getStream(device).synchronize();
}

Device::CountWaits CudaDevice::count_waits() const {
  return plugin().count_synchronizations;
}

int64_t CudaDevice::waits() const {
  return plugin().synchronizations();
}

int64_t CudaDevice::peak_memory() const {
  return plugin().peak_memory();
}

void CudaDevice::reset_peak_memory(at::Device device) const {
  c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(device.index());
}

}  // namespace conclave

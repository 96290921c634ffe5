// A GPU, through the plug-in (device/cuda_plugin.h): NCCL between ranks, pinned memory for what leaves the device.
#pragma once

#include "device/device.h"

namespace conclave {

class CudaDevice final : public Device {
 public:
  const DeviceFacts& facts() const override { return cuda_facts; }
  // The reference without the plug-in.
  const Kernels& kernels() const override;
  bool has_fast_bf16() const override { return true; }
  std::optional<GpuChip> chip() const override;
  void take(at::Device device, const Process& process, WorldOptions& world) const override;
  std::unique_ptr<OffloadMedium> make_offload_medium(const std::filesystem::path& folder) const override;
  at::Tensor host_memory(int64_t bytes) const override;
  void synchronize() const override;
  void finish_computing(at::Device device) const override;
  CountWaits count_waits() const override;
  int64_t waits() const override;
  int64_t peak_memory() const override;
  void reset_peak_memory(at::Device device) const override;
};

}  // namespace conclave

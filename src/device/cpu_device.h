// The CPU: Gloo between ranks, a scratch file for what leaves memory.
#pragma once

#include "device/device.h"

namespace conclave {

class CpuDevice : public Device {
 public:
  const DeviceFacts& facts() const override { return cpu_facts; }
  const Kernels& kernels() const override { return cpu_kernels(); }
  bool has_fast_bf16() const override;
  std::unique_ptr<OffloadMedium> make_offload_medium(const std::filesystem::path& folder) const override;
  int64_t peak_memory() const override;
};

}  // namespace conclave

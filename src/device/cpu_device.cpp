#include "device/cpu_device.h"

#include "kernels/cpu_features.h"
#include "memory/memory_category.h"
#include "memory/scratch_file.h"

namespace conclave {

bool CpuDevice::has_fast_bf16() const {
  return cpu_has({"avx512_bf16"}) || cpu_has({"amx_bf16"});
}

std::unique_ptr<OffloadMedium> CpuDevice::make_offload_medium(const std::filesystem::path& folder) const {
  return std::make_unique<ScratchFile>(folder);
}

int64_t CpuDevice::peak_memory() const {
  return memory_report().at_peak.total;
}

}  // namespace conclave

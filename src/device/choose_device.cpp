#include "device/choose_device.h"

#include <fmt/core.h>

#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "base/error.h"
#include "base/log.h"
#include "device/cuda_plugin.h"

namespace conclave {

bool ranks_share_gpus() {
  const char* value = std::getenv("CONCLAVE_SHARE_GPUS");
  return value != nullptr && std::string_view(value) == "1";
}

at::Device choose_device(WantedDevice wanted, const Process& process) {
  if (wanted == WantedDevice::cpu) return at::kCPU;
  std::string why_not;
  const int devices = cuda_device_count(&why_not);
  if (devices >= process.local_world_size) return {at::kCUDA, static_cast<at::DeviceIndex>(process.local_rank)};
  if (devices > 0 && ranks_share_gpus()) return {at::kCUDA, static_cast<at::DeviceIndex>(process.local_rank % devices)};
  if (devices > 0)
    why_not = fmt::format(
        "each rank sees {}, and its host has {} ranks (a launcher that shows each rank a GPU of its own, as Slurm's "
        "--gpus-per-task does, must show it all of them: --gpus-per-node)",
        devices == 1 ? "1 GPU" : fmt::format("{} GPUs", devices), process.local_world_size);
  if (wanted == WantedDevice::automatic) {
    const bool has_driver = std::filesystem::exists("/proc/driver/nvidia/version");
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    const bool is_meant = visible != nullptr && *visible == 0;
    if ((devices > 0 || has_driver) && !is_meant && process.rank == 0)
      spdlog::warn(
          "run.device is auto, and computes on the CPU though this host has a GPU: {}. If that is meant, say "
          "run.device: "
          "cpu",
          why_not);
    return at::kCPU;
  }
  user_error("run.device is cuda, but {}. Use run.device: cpu, or run where there is a GPU for each rank.", why_not);
}

}  // namespace conclave

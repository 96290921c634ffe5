#include "comm/device.h"

#include <dlfcn.h>
#include <fmt/core.h>

#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <string_view>

#include "base/error.h"
#include "base/log.h"

namespace conclave {
namespace {

constexpr const char* plugin_file = "libconclave_cuda.so";

struct Loaded {
  const CudaPlugin* plugin = nullptr;
  std::string why_not;
};

Loaded load() {
  // Beside the program or the library that holds this code, in lib beside the program's folder (so it is installed),
  // else where the system looks.
  Dl_info here{};
  dladdr(reinterpret_cast<const void*>(&load_cuda_plugin), &here);
  // Of the program itself the loader knows the name that it was called by, which may be without its folder.
  std::filesystem::path holder = here.dli_fname ? here.dli_fname : "";
  std::error_code unknown;
  if (!holder.has_parent_path()) holder = std::filesystem::read_symlink("/proc/self/exe", unknown);
  const auto folder = holder.parent_path();
  std::string path = plugin_file;
  for (const auto& place : {folder / ".." / "lib" / plugin_file, folder / plugin_file})
    if (std::filesystem::exists(place)) path = place.string();
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr)
    return {nullptr, fmt::format("the CUDA half of the program cannot be loaded ({})", dlerror())};
  const auto plugin = reinterpret_cast<const CudaPlugin* (*)()>(dlsym(library, "conclave_cuda_plugin"));
  if (plugin == nullptr) return {nullptr, fmt::format("{} is not of this program ({})", path, dlerror())};
  return {plugin(), ""};
}

}  // namespace

const CudaPlugin* load_cuda_plugin(std::string* why_not) {
  static const Loaded loaded = load();
  if (why_not) *why_not = loaded.why_not;
  return loaded.plugin;
}

int cuda_device_count(std::string* why_not) {
  const CudaPlugin* plugin = load_cuda_plugin(why_not);
  if (plugin == nullptr) return 0;
  const int devices = plugin->device_count();
  if (devices == 0 && why_not) *why_not = "no GPU, or no driver for it, is visible to this process";
  return devices;
}

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

#include "device/cuda_plugin.h"

#include <dlfcn.h>
#include <fmt/core.h>

#include <filesystem>

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

}  // namespace conclave

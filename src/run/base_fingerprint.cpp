#include "run/base_fingerprint.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <system_error>
#include <vector>

#include "base/random.h"

namespace conclave {
namespace {

constexpr std::streamoff looked_at = 1 << 18;  // bytes at either end of a file

std::string ends_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff length = file.tellg();
  std::string bytes = fmt::format("{} {}\n", path.filename().string(), length);
  for (const std::streamoff begin : {std::streamoff{0}, std::max<std::streamoff>(length - looked_at, 0)}) {
    std::string part(static_cast<size_t>(std::min(looked_at, length)), '\0');
    file.seekg(begin);
    file.read(part.data(), static_cast<std::streamsize>(part.size()));
    bytes += part;
  }
  return bytes;
}

}  // namespace

std::string base_fingerprint(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code unreadable;
  for (const auto& entry : std::filesystem::directory_iterator(folder, unreadable))
    if (entry.path().extension() == ".safetensors" && entry.is_regular_file(unreadable)) files.push_back(entry.path());
  if (files.empty()) return "";
  std::sort(files.begin(), files.end());
  std::string seen;
  for (const std::filesystem::path& file : files) seen += fmt::format("{:016x}", random_stream(ends_of(file)));
  return fmt::format("{:016x}", random_stream(seen));
}

}  // namespace conclave

// Bytes and seconds as people read them.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <string>

namespace conclave {

inline constexpr double gib = 1024.0 * 1024 * 1024, mib = 1024.0 * 1024;

inline std::string size_text(double bytes) {
  return std::abs(bytes) >= gib ? fmt::format("{:.2f} GiB", bytes / gib) : fmt::format("{:.1f} MiB", bytes / mib);
}

inline std::string seconds_text(double seconds) {
  return seconds >= 1 ? fmt::format("{:.2f} s", seconds) : fmt::format("{:.1f} ms", seconds * 1e3);
}

}  // namespace conclave

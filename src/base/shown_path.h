// A path in a message about something that was not found: a relative one goes with the place where it was looked for.
#pragma once

#include <filesystem>
#include <string>
#include <system_error>

namespace conclave {

// "model" in /home/me: "model (/home/me/model)".
inline std::string shown_path(const std::filesystem::path& path) {
  std::error_code unknown;
  const std::filesystem::path whole = std::filesystem::absolute(path, unknown);
  if (path.is_absolute() || unknown) return path.string();
  return path.string() + " (" + whole.lexically_normal().string() + ")";
}

}  // namespace conclave

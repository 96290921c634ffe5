#include "comm/environment.h"

#include <charconv>
#include <cstdlib>

#include "base/error.h"

namespace conclave {

std::optional<std::string> variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

int parse_count(std::string_view text, const char* name, std::string_view whole) {
  int value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size() || value < 0)
    user_error(
        "environment variable {} is \"{}\", where a number was expected. The launcher sets it: unset it, or start the "
        "ranks by the launcher.",
        name, whole);
  return value;
}

std::optional<int> count_in(const char* name) {
  const auto text = variable(name);
  if (!text) return std::nullopt;
  return parse_count(*text, name, *text);
}

const char* first_set(std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (variable(name)) return name;
  return nullptr;
}

int required_count(const char* name, const char* launcher, const char* seen) {
  const auto value = count_in(name);
  if (!value)
    user_error(
        "environment variable {} is set, so this rank seems to be started by {}, but {} is not set. Start all ranks by "
        "{}, or unset {}.",
        seen, launcher, name, launcher, seen);
  return *value;
}

int port_in(const char* name) {
  const int value = *count_in(name);
  if (value < 1 || value > 65535)
    user_error("environment variable {} is {}, which is no port: use 1 to 65535.", name, value);
  return value;
}

}  // namespace conclave

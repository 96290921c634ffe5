#include "config/path_text.h"

#include <fmt/format.h>
#include <pwd.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <string_view>

namespace conclave {
namespace {

constexpr std::string_view letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_";
constexpr std::string_view digits = "0123456789";

bool is_name(std::string_view text) {
  return !text.empty() && letters.find(text[0]) != std::string_view::npos &&
         text.find_first_not_of(std::string(letters) + std::string(digits)) == std::string_view::npos;
}

std::optional<std::string> variable(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

// Of a user, or of this one if `name` is empty.
std::optional<std::string> home_of(const std::string& name) {
  if (name.empty())
    if (auto home = variable("HOME")) return home;
  const passwd* entry = name.empty() ? getpwuid(getuid()) : getpwnam(name.c_str());
  if (entry == nullptr || entry->pw_dir == nullptr || *entry->pw_dir == '\0') return std::nullopt;
  return entry->pw_dir;
}

// What a dollar sign at the beginning of `text` stands for. `length`: of the text that it replaces.
std::string replacement(std::string_view text, size_t& length, std::string& refusal) {
  length = 1;
  std::string name;
  if (text.starts_with("$$")) {
    length = 2;
  } else if (text.starts_with("${")) {
    const size_t close = text.find('}');
    name = text.substr(2, close == std::string_view::npos ? close : close - 2);
    length = close == std::string_view::npos ? text.size() : close + 1;
    if (close == std::string_view::npos || !is_name(name)) {
      refusal = fmt::format(", but {} is no variable: only ${{NAME}} is understood. Write $$ for a dollar sign.",
                            text.substr(0, length));
      return "";
    }
  } else {
    while (length < text.size() && is_name(text.substr(1, length))) ++length;
    name = text.substr(1, length - 1);
  }
  if (name.empty()) return "$";
  if (const auto value = variable(name)) return *value;
  refusal = fmt::format(", but the environment variable {} is {}. Set it, or write $$ for a dollar sign.", name,
                        std::getenv(name.c_str()) == nullptr ? "not set" : "empty");
  return "";
}

}  // namespace

std::string expand_path(std::string& text) {
  std::string expanded;
  size_t at = 0;
  if (text.starts_with('~')) {
    at = std::min(text.find('/'), text.size());
    const auto home = home_of(text.substr(1, at - 1));
    if (!home)
      return fmt::format(", but {} has no home folder. Write ./~ for a name that begins with a tilde.",
                         at == 1 ? "this user" : "the user " + text.substr(1, at - 1));
    expanded = *home;
  }
  while (at < text.size()) {
    if (text[at] != '$') {
      expanded += text[at++];
      continue;
    }
    std::string refusal;
    size_t length = 0;
    expanded += replacement(std::string_view(text).substr(at), length, refusal);
    if (!refusal.empty()) return refusal;
    at += length;
  }
  text = expanded;
  return "";
}

std::string written_path(const std::string& path) {
  std::string text = path.starts_with('~') ? "./" : "";
  for (char letter : path) text += letter == '$' ? "$$" : std::string(1, letter);
  return text;
}

}  // namespace conclave

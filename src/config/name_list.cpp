#include "config/name_list.h"

#include <fmt/format.h>

#include "config/field_values.h"

namespace conclave {

std::string read_value(const GivenValue& given, NameList& value) {
  NameList read;
  const auto add = [&](const GivenValue& one) {
    std::string name;
    const bool is_text = one.kind == GivenValue::Kind::plain || one.kind == GivenValue::Kind::quoted;
    if (!is_text || !read_value(one, name).empty() || name.empty()) return false;
    read.names.push_back(std::move(name));
    return true;
  };
  if (given.kind == GivenValue::Kind::list) {
    for (const auto& [key, member] : given.members)
      if (!add(member)) return fmt::format(", but {} in it is no name.", shown(member));
  } else if (given.kind != GivenValue::Kind::null && !add(given)) {
    return refusal_of_type(type_words(value));
  }
  value = std::move(read);
  return "";
}

std::string print_value(const NameList& value) {
  std::string text;
  for (const std::string& name : value.names) text += (text.empty() ? "" : ", ") + print_value(name);
  return "[" + text + "]";
}

// With a star, what it stands for grows by one character each time the rest does not fit.
bool matches(const std::string& pattern, const std::string& name) {
  size_t p = 0, n = 0;
  size_t behind_star = std::string::npos, retry = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      behind_star = ++p;
      retry = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (behind_star != std::string::npos) {
      p = behind_star;
      n = ++retry;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace conclave

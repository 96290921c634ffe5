// A list of names or of patterns of names, as a job gives it: [a, b], or one alone.
#pragma once

#include <string>
#include <vector>

namespace conclave {

struct GivenValue;

struct NameList {
  std::vector<std::string> names;

  bool empty() const { return names.empty(); }
  bool operator==(const NameList&) const = default;
};

std::string read_value(const GivenValue& given, NameList& value);
std::string print_value(const NameList& value);
inline std::string type_words(const NameList&) {
  return "a name, or a list of names";
}

// Whether a whole name fits the pattern: * stands for any characters, none included, ? for one; all others for
// themselves.
bool matches(const std::string& pattern, const std::string& name);

}  // namespace conclave

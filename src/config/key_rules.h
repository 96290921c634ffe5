// Collects the mistakes of values that do not fit each other.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "config/fields.h"
#include "config/mistake.h"

namespace conclave {

class KeyRules {
 public:
  // A rule is skipped when it needs a key that `known` says no to (its value could not be read).
  using Known = std::function<bool(std::string_view)>;
  KeyRules(const Origins& origins, Known known) : origins_(origins), known_(std::move(known)) {}

  // `keys`: what the rule looks at; the place of the first that was given stands in the message.
  void refuse_if(bool broken, const std::vector<const char*>& keys, const std::string& problem,
                 const std::string& remedy);

  bool know(const std::vector<const char*>& keys) const { return std::all_of(keys.begin(), keys.end(), known_); }
  std::string place_of(const char* key) const { return origins_.of(key); }

  std::vector<std::string> mistakes;

 private:
  const Origins& origins_;
  Known known_;
};

// The value of a key of this section, as a job file has it.
template <class Section>
std::string value_of(Section section, const char* key) {
  Fields fields;
  describe(section, fields);
  return fields.at(key).printed();
}

}  // namespace conclave

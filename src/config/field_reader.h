// Reads what a user wrote into members that a description of fields names (config/fields.h), strictly: whatever is not
// understood is refused, all mistakes at once.
#pragma once

#include <fmt/format.h>

#include <limits>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "config/field_values.h"
#include "config/given.h"
#include "config/mistake.h"

namespace conclave {

// A visitor: all names that a description has.
struct NameCollector {
  std::vector<std::string> sections;
  std::vector<std::string> keys;

  void section(const char* name, const char*) { sections.emplace_back(name); }
  template <class T, class Rule>
  void field(const char* key, const T&, const Rule&, const char*) {
    keys.emplace_back(key);
  }
};

// What was given, by the key it means. A key may have been given under several names, which must agree.
using GivenByName = std::map<std::string, std::vector<Given>>;

// A visitor: moves what was given into the members, key by key, and collects the mistakes.
class FieldReader {
 public:
  FieldReader(GivenByName given, std::vector<OrderedMistake> mistakes)
      : given_(std::move(given)), mistakes_(std::move(mistakes)) {}

  Origins origins;

  void section(const char*, const char*) {}

  template <class T, class Rule>
  void field(const char* key, T& value, const Rule& rule, const char*) {
    const auto found = given_.find(key);
    if (found == given_.end()) return;
    const Given* first = nullptr;
    for (const Given& given : found->second) {
      T candidate = value;
      std::string refusal = read_value(given.value, candidate, rule);
      if (refusal.empty()) refusal = check_value(candidate, rule);
      if (!refusal.empty()) {
        add_mistake(given, fmt::format("{} is {}{}", given.key, shown(given.value), refusal), "");
        not_known_.insert(key);
        continue;
      }
      if (first != nullptr && candidate != value) {
        add_mistake(given,
                    fmt::format("{} is {}, but {} is {}, and both mean {}.", given.key, shown(given.value), first->key,
                                shown(first->value), key),
                    fmt::format("Keep one of them{}.", first->place == given.place ? "" : " (" + first->place + ")"));
        not_known_.insert(key);
        continue;
      }
      first = &given;
      value = candidate;
      origins.set(key, given.place);
    }
    given_.erase(found);
  }

  // What no field took.
  void refuse_the_rest(const NameCollector& names);

  bool knows(std::string_view key) const { return !not_known_.contains(key); }
  void add_last(const std::string& text) { mistakes_.push_back({last_, text}); }

  void refuse_if_any();

 private:
  static constexpr int last_ = std::numeric_limits<int>::max();

  void add_mistake(const Given& given, const std::string& problem, const std::string& remedy);
  void refuse_unknown(const Given& given, const NameCollector& names);

  GivenByName given_;
  std::vector<OrderedMistake> mistakes_;
  std::set<std::string, std::less<>> not_known_;
};

}  // namespace conclave

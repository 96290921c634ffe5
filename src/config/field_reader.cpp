#include "config/field_reader.h"

#include <algorithm>

#include "config/nearest_name.h"

namespace conclave {

void FieldReader::refuse_the_rest(const NameCollector& names) {
  for (const auto& [key, all] : given_) {
    for (const Given& given : all) refuse_unknown(given, names);
  }
  given_.clear();
}

void FieldReader::refuse_if_any() {
  std::stable_sort(mistakes_.begin(), mistakes_.end(), [](const auto& a, const auto& b) { return a.order < b.order; });
  std::vector<std::string> texts;
  for (const OrderedMistake& one : mistakes_) texts.push_back(one.text);
  conclave::refuse_if_any(texts);
}

void FieldReader::add_mistake(const Given& given, const std::string& problem, const std::string& remedy) {
  mistakes_.push_back({given.order, mistake(problem, remedy, given.place)});
}

void FieldReader::refuse_unknown(const Given& given, const NameCollector& names) {
  if (const auto meant = nearest_key(given.key, names.keys)) {
    add_mistake(given, fmt::format("unknown key {}. Did you mean {}?", given.key, *meant), "");
    return;
  }
  const std::string section = given.key.substr(0, given.key.find('.') + 1);
  std::vector<std::string> keys;
  for (const std::string& key : names.keys) {
    if (key.starts_with(section)) keys.push_back(key.substr(section.size()));
  }
  if (keys.empty()) {
    add_mistake(given, fmt::format("unknown key {}.", given.key),
                fmt::format("The sections are {}.", fmt::join(names.sections, ", ")));
  } else {
    add_mistake(given, fmt::format("unknown key {}.", given.key),
                fmt::format("The keys of {} are {}.", section.substr(0, section.size() - 1), fmt::join(keys, ", ")));
  }
}

}  // namespace conclave

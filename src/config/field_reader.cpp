#include "config/field_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "config/nearest_name.h"

namespace conclave {

FieldNames names_of(const Fields& fields) {
  FieldNames names;
  for (const Fields::Section& section : fields.sections()) names.sections.emplace_back(section.name);
  for (const Field* field : fields.all()) names.keys.push_back(field->key());
  return names;
}

void FieldReader::read(const Fields& fields) {
  for (Field* field : fields.all()) {
    const auto found = given_.find(field->key());
    if (found == given_.end()) continue;
    read(*field, found->second);
    given_.erase(found);
  }
}

void FieldReader::read(Field& field, const std::vector<Given>& all) {
  const Given* first = nullptr;
  for (const Given& given : all) {
    const std::string before = field.printed();
    if (const std::string refusal = field.take(given.value); !refusal.empty()) {
      add_mistake(given, fmt::format("{} is {}{}", given.key, shown(given.value), refusal), "");
      not_known_.insert(field.key());
    } else if (first != nullptr && field.printed() != before) {
      add_mistake(given,
                  fmt::format("{} is {}, but {} is {}, and both mean {}.", given.key, shown(given.value), first->key,
                              shown(first->value), field.key()),
                  fmt::format("Keep one of them{}.", first->place == given.place ? "" : " (" + first->place + ")"));
      not_known_.insert(field.key());
    } else {
      first = &given;
      origins_.set(field.key(), given.place);
    }
  }
}

void FieldReader::add_last(const std::string& text) {
  mistakes_.push_back({std::numeric_limits<int>::max(), text});
}

void FieldReader::refuse_the_rest(const FieldNames& names) {
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

void FieldReader::refuse_unknown(const Given& given, const FieldNames& names) {
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

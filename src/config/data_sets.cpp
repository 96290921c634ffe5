#include "config/data_sets.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "config/field_values.h"

namespace conclave {
namespace {

using Kind = GivenValue::Kind;

bool is_name(const std::string& name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char letter) {
    return std::isalnum(static_cast<unsigned char>(letter)) != 0 || letter == '_' || letter == '-' || letter == '.';
  });
}

std::string default_name(const std::filesystem::path& prefix) {
  const std::string extension = prefix.extension().string();
  return (extension == ".bin" || extension == ".idx" ? prefix.stem() : prefix.filename()).string();
}

bool has_defaults(const DataSet& set) {
  return (set.name.empty() || set.name == default_name(set.prefix)) && set.weight == 1;
}

// Of one set by itself. A refusal is the second half of a sentence (field_values.h).
std::string read_path(const GivenValue& given, const std::string& which, DataSet& set) {
  const std::string refusal = read_value(given, set.prefix);
  if (!refusal.empty()) return fmt::format(" in which the path of {} is {}{}", which, shown(given), refusal);
  if (set.name.empty()) set.name = default_name(set.prefix);
  return "";
}

std::string read_member(const std::string& key, const GivenValue& given, const std::string& which, bool weighted,
                        DataSet& set) {
  if (key == "path") return read_path(given, which, set);
  if (key == "name") {
    const std::string refusal = read_value(given, set.name);
    return refusal.empty() ? "" : fmt::format(" in which the name of {} is {}{}", which, shown(given), refusal);
  }
  if (key == "weight" && weighted) {
    std::string refusal = read_value(given, set.weight);
    if (refusal.empty()) refusal = refusal_of_range(set.weight, more_than(0));
    return refusal.empty() ? "" : fmt::format(" in which the weight of {} is {}{}", which, shown(given), refusal);
  }
  return fmt::format(", but {} has the unknown key {}. The keys are {}.", which, key,
                     weighted ? "path, weight and name" : "path and name");
}

std::string read_set(const GivenValue& given, const std::string& which, bool weighted, DataSet& set) {
  if (given.kind != Kind::group) return read_path(given, which, set);
  for (const auto& [key, value] : given.members) {
    const auto same = [&key = key](const auto& member) { return member.first == key; };
    if (std::count_if(given.members.begin(), given.members.end(), same) > 1)
      return fmt::format(", but {} has the key {} twice.", which, key);
    if (std::string refusal = read_member(key, value, which, weighted, set); !refusal.empty()) return refusal;
  }
  if (set.prefix.empty()) return fmt::format(", but {} has no path.", which);
  return "";
}

std::string check_names(const std::vector<DataSet>& sets) {
  if (sets.size() == 1) return "";
  for (const DataSet& set : sets) {
    if (!is_name(set.name))
      return fmt::format(
          ", but \"{}\" (of {}) is no name: names have letters, digits, '.', '_' and '-'. Give each set a name.",
          set.name, set.prefix.string());
    const auto same = [&](const DataSet& other) { return other.name == set.name; };
    if (std::count_if(sets.begin(), sets.end(), same) > 1)
      return fmt::format(", but two of its sets are called {}. Give each a name of its own.", set.name);
  }
  return "";
}

std::string read_list(const GivenValue& given, bool weighted, std::vector<DataSet>& sets) {
  if (given.members.empty()) return ", but it is empty: it must name at least one set.";
  for (size_t i = 0; i < given.members.size(); ++i) {
    DataSet set;
    const std::string which = fmt::format("set {}", i + 1);
    if (std::string refusal = read_set(given.members[i].second, which, weighted, set); !refusal.empty()) return refusal;
    sets.push_back(std::move(set));
  }
  return check_names(sets);
}

std::string read_names(const GivenValue& given, std::vector<DataSet>& sets) {
  if (given.members.empty()) return ", but it is empty: it must name at least one set.";
  for (const auto& [name, value] : given.members) {
    DataSet set;
    set.name = name;
    if (std::string refusal = read_path(value, name, set); !refusal.empty()) return refusal;
    sets.push_back(std::move(set));
  }
  return check_names(sets);
}

std::string read_one(const GivenValue& given, const std::string& type, std::vector<DataSet>& sets) {
  DataSet set;
  std::string refusal = read_value(given, set.prefix);
  if (!refusal.empty()) return given.kind == Kind::null ? refusal_of_type(type) : refusal;
  set.name = default_name(set.prefix);
  sets.push_back(std::move(set));
  return "";
}

}  // namespace

bool ValidationData::is_named() const {
  return sets.size() > 1 || !has_defaults(sets[0]);
}

std::string prefixes_of(const std::vector<DataSet>& sets) {
  std::string text;
  for (const DataSet& set : sets) text += (text.empty() ? "" : ", ") + set.prefix.string();
  return text;
}

std::string names_and_weights_of(const std::vector<DataSet>& sets) {
  if (sets.size() < 2) return "at most one set";
  std::string text;
  for (const DataSet& set : sets)
    text += fmt::format("{}{} with weight {}", text.empty() ? "" : ", ", set.name, print_value(set.weight));
  return text;
}

std::string read_value(const GivenValue& given, TrainingData& value) {
  std::vector<DataSet> sets;
  std::string refusal = given.kind == Kind::list    ? read_list(given, /*weighted=*/true, sets)
                        : given.kind == Kind::group ? refusal_of_type(type_words(value))
                                                    : read_one(given, type_words(value), sets);
  if (refusal.empty()) value.sets = std::move(sets);
  return refusal;
}

std::string read_value(const GivenValue& given, ValidationData& value) {
  std::vector<DataSet> sets;
  std::string refusal = given.kind == Kind::list    ? read_list(given, /*weighted=*/false, sets)
                        : given.kind == Kind::group ? read_names(given, sets)
                                                    : read_one(given, type_words(value), sets);
  if (refusal.empty()) value.sets = std::move(sets);
  return refusal;
}

std::string print_value(const TrainingData& value) {
  if (value.empty()) return "null";
  if (value.sets.size() == 1 && has_defaults(value.sets[0])) return print_value(value.sets[0].prefix);
  std::string text;
  for (const DataSet& set : value.sets)
    text += fmt::format("{}{{path: {}, weight: {}, name: {}}}", text.empty() ? "" : ", ", print_value(set.prefix),
                        print_value(set.weight), print_value(set.name));
  return "[" + text + "]";
}

std::string print_value(const ValidationData& value) {
  if (!value.is_named()) return print_value(value.sets[0].prefix);
  std::string text;
  for (const DataSet& set : value.sets)
    text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", print_value(set.name), print_value(set.prefix));
  return "{" + text + "}";
}

}  // namespace conclave

// The values of the job file's keys: read from what a user wrote, checked by their rule, printed as YAML that reads
// back the same.
//
// A refusal is the second half of a sentence that begins with "<key> is <value>": ", but it must be a whole number."
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "config/data_sets.h"
#include "config/duration.h"
#include "config/mistake.h"
#include "config/name_list.h"
#include "config/reshard_rule.h"
#include "config/value_rules.h"
#include "config/written_keys.h"

namespace conclave {

// A refusal, or nothing if the value was read.
std::string read_value(const GivenValue& given, bool& value);
std::string read_value(const GivenValue& given, int64_t& value);
std::string read_value(const GivenValue& given, double& value);
std::string read_value(const GivenValue& given, std::string& value);
std::string read_value(const GivenValue& given, std::filesystem::path& value);
std::string read_value(const GivenValue& given, ReshardRule& value);
std::string read_value(const GivenValue& given, Duration& value);

std::string print_value(bool value);
std::string print_value(int64_t value);
std::string print_value(double value);  // shortest text that reads back as the same number, always with a point
std::string print_value(const std::string& value);
std::string print_value(const std::filesystem::path& value);  // an empty one is null
std::string print_value(const ReshardRule& value);
std::string print_value(Duration value);

// "a whole number"
inline std::string type_words(bool) {
  return "true or false";
}
inline std::string type_words(int64_t) {
  return "a whole number";
}
inline std::string type_words(double) {
  return "a number";
}
inline std::string type_words(const std::string&) {
  return "text";
}
inline std::string type_words(const std::filesystem::path&) {
  return "a path";
}
inline std::string type_words(Duration) {
  return "a duration in days, hours, minutes and seconds, such as 90m or 3h30m";
}
inline std::string type_words(const ReshardRule&) {
  return "true, false or the units that stay gathered, such as: all but layers.4-7, layers.9";
}

std::string refusal_of_type(const std::string& type_words);
std::string refusal_of_version(const std::string& reason, const std::string& remedy);
std::string refusal_of_range(double value, const NumberRange& range);
std::string range_words(const NumberRange& range);  // "at least 1"; an upper end beyond a million goes without saying

template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {
  using Value = T;
};

template <class Enum>
std::vector<std::string> words_of(const OneOf<Enum>& choices) {
  std::vector<std::string> words;
  for (const auto& [word, value] : choices.words) words.push_back(word);
  return words;
}

template <class T, class Rule>
std::string describe_type(const T& value, const Rule& rule) {
  if constexpr (IsOptional<T>::value) {
    return describe_type(typename IsOptional<T>::Value{}, rule) + ", or null";
  } else if constexpr (std::is_enum_v<T>) {
    return any_of(words_of(rule));
  } else if constexpr (std::is_same_v<Rule, NumberRange>) {
    return type_words(value) + ", " + range_words(rule);
  } else {
    return type_words(value);
  }
}

template <class T, class Rule>
std::string print_value(const T& value, const Rule& rule) {
  if constexpr (IsOptional<T>::value) {
    return value ? print_value(*value, rule) : "null";
  } else if constexpr (std::is_enum_v<T>) {
    for (const auto& [word, choice] : rule.words) {
      if (choice == value) return word;
    }
    return "?";
  } else if constexpr (std::is_same_v<Rule, WordOrPath>) {
    return print_value(std::filesystem::path(value));
  } else {
    return print_value(value);
  }
}

// Reads the type; the rule's other demands are check_value's.
template <class T, class Rule>
std::string read_value(const GivenValue& given, T& value, const Rule& rule) {
  if constexpr (IsOptional<T>::value) {
    if (given.kind == GivenValue::Kind::null) {
      value.reset();
      return "";
    }
    typename IsOptional<T>::Value inner{};
    std::string refusal = read_value(given, inner, rule);
    if (refusal.empty()) value = inner;
    return refusal;
  } else if constexpr (std::is_enum_v<T>) {
    for (const auto& [word, choice] : rule.words) {
      if (given.text == word) {
        value = choice;
        return "";
      }
    }
    return refusal_of_type(any_of(words_of(rule)));
  } else {
    if constexpr (std::is_same_v<Rule, RequiredPath>) {
      if (given.kind == GivenValue::Kind::null) {
        value.clear();
        return "";
      }
    }
    if constexpr (std::is_same_v<Rule, WordOrPath>) {
      std::filesystem::path path;
      std::string refusal = read_value(given, path);
      if (refusal.empty()) value = path;
      return refusal;
    }
    return read_value(given, value);
  }
}

// Nothing if the value obeys the rule. A required path that is missing is not this function's matter.
template <class T, class Rule>
std::string check_value(const T& value, const Rule& rule) {
  if constexpr (std::is_same_v<Rule, Only>) {
    return print_value(value, rule) == rule.value ? "" : refusal_of_version(rule.reason, rule.value);
  } else if constexpr (IsOptional<T>::value) {
    return value ? check_value(*value, rule) : "";
  } else if constexpr (std::is_same_v<Rule, NumberRange>) {
    return refusal_of_range(static_cast<double>(value), rule);
  } else if constexpr (std::is_same_v<Rule, NotEmpty>) {
    return value.empty() ? refusal_of_type("text that is not empty") : "";
  } else if constexpr (std::is_enum_v<T>) {
    for (const auto& [word, choice] : rule.words) {
      if (choice == value) return "";
    }
    return refusal_of_type("one of " + any_of(words_of(rule)));
  } else {
    return "";
  }
}

}  // namespace conclave

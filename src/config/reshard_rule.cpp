#include "config/reshard_rule.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "config/nearest_name.h"

namespace conclave {
namespace {

constexpr std::string_view prefix = "all but ";

std::string_view trimmed(std::string_view text) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  return text;
}

std::optional<int64_t> whole_number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || text.front() == '-' || error != std::errc() || end != text.data() + text.size())
    return std::nullopt;
  return value;
}

// "head", "layers.4" or "layers.4-7".
std::optional<ReshardRule::Units> parse_units(std::string_view text) {
  const size_t point = text.find('.');
  const std::string_view stem = text.substr(0, point == std::string_view::npos ? text.size() : point + 1);
  const bool is_word = !stem.empty() && stem.front() != '.' && std::all_of(stem.begin(), stem.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || c == '_' || c == '.';
  });
  if (!is_word) return std::nullopt;
  if (point == std::string_view::npos) return ReshardRule::Units{std::string(stem), std::nullopt, 0};
  const std::string_view numbers = text.substr(point + 1);
  const size_t dash = numbers.find('-');
  const auto first = whole_number(numbers.substr(0, dash));
  const auto last = dash == std::string_view::npos ? first : whole_number(numbers.substr(dash + 1));
  if (!first || !last || *last < *first) return std::nullopt;
  return ReshardRule::Units{std::string(stem), first, *last};
}

std::string unit_name(const ReshardRule::Units& units, int64_t number) {
  return units.first ? fmt::format("{}{}", units.stem, number) : units.stem;
}

}  // namespace

std::optional<ReshardRule> ReshardRule::parse(std::string_view text) {
  text = trimmed(text);
  if (!text.starts_with(prefix)) return std::nullopt;
  text.remove_prefix(prefix.size());
  ReshardRule rule;
  while (true) {
    const size_t comma = text.find(',');
    const auto units = parse_units(trimmed(text.substr(0, comma)));
    if (!units) return std::nullopt;
    rule.exceptions_.push_back(*units);
    if (comma == std::string_view::npos) return rule;
    text.remove_prefix(comma + 1);
  }
}

bool ReshardRule::stays_gathered(std::string_view unit) const {
  if (!all_) return true;
  return std::any_of(exceptions_.begin(), exceptions_.end(), [&](const Units& units) {
    if (!units.first) return unit == units.stem;
    if (!unit.starts_with(units.stem)) return false;
    const auto number = whole_number(unit.substr(units.stem.size()));
    return number && *number >= *units.first && *number <= units.last;
  });
}

std::string ReshardRule::text() const {
  if (exceptions_.empty()) return all_ ? "true" : "false";
  std::vector<std::string> parts;
  for (const Units& units : exceptions_) {
    parts.push_back(unit_name(units, units.first.value_or(0)));
    if (units.first && units.last != *units.first) parts.back() += fmt::format("-{}", units.last);
  }
  return fmt::format("{}{}", prefix, fmt::join(parts, ", "));
}

namespace {

bool is_in(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// For a unit `name` of the exception that the model does not have.
std::string remedy_of(const ReshardRule::Units& exception, const std::string& name,
                      const std::vector<std::string>& units) {
  if (exception.first && is_in(units, unit_name(exception, 0))) {
    int64_t last = 0;
    while (is_in(units, unit_name(exception, last + 1))) ++last;
    return fmt::format("Its last one is {}.", unit_name(exception, last));
  }
  const auto nearest = nearest_name(name, units);
  return nearest ? fmt::format("Did you mean {}?", *nearest) : fmt::format("Its units are {}.", fmt::join(units, ", "));
}

}  // namespace

std::optional<RuleMistake> mistake_in(const ReshardRule& rule, const std::vector<std::string>& units,
                                      const std::vector<std::string>& used_once) {
  for (const ReshardRule::Units& exception : rule.exceptions()) {
    const int64_t first = exception.first.value_or(0);
    for (int64_t number = first; number <= std::max(first, exception.last); ++number) {
      const std::string name = unit_name(exception, number);
      if (!is_in(units, name)) {
        return RuleMistake{fmt::format("the model has no unit {}", name), remedy_of(exception, name, units)};
      }
      if (is_in(used_once, name))
        return RuleMistake{fmt::format("{} is used once in a micro-step, and there is nothing to keep it for", name),
                           "Name only units that forward and backward both use."};
    }
  }
  return std::nullopt;
}

}  // namespace conclave

#include "config/field_values.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "config/path_text.h"

namespace conclave {
namespace {

// The number that the whole of a plain value says. `out_of_range` tells a number too large for its type from what is no
// number.
template <class Number>
std::optional<Number> parse_number(const GivenValue& given, bool& out_of_range) {
  out_of_range = false;
  if (given.kind != GivenValue::Kind::plain) return std::nullopt;
  std::string_view text = given.text;
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (end != text.data() + text.size()) return std::nullopt;
  out_of_range = error == std::errc::result_out_of_range;
  if (error != std::errc()) return std::nullopt;
  return number;
}

// An upper end this high goes without saying, until a value is above it.
constexpr double unsaid_most = 1e6;

bool is_quoted(const GivenValue& given) {
  return given.kind == GivenValue::Kind::quoted;
}

// Refuses the type, and says so if it is only the quotes that are wrong.
template <class T>
std::string refuse_type(const GivenValue& given, T value) {
  const bool right_without_quotes =
      is_quoted(given) && read_value({GivenValue::Kind::plain, given.text}, value).empty();
  return refusal_of_type(type_words(value)) + (right_without_quotes ? " Remove the quotes." : "");
}

}  // namespace

std::string refusal_of_type(const std::string& type_words) {
  return fmt::format(", but it must be {}.", type_words);
}

std::string refusal_of_version(const std::string& reason, const std::string& remedy) {
  const std::string because = reason.empty() ? "" : fmt::format(" ({})", reason);
  return fmt::format(", which is not supported in this version{}; use {}.", because, remedy);
}

std::string refusal_of_range(double value, const NumberRange& range) {
  const bool enough = range.without_least ? value > range.least : value >= range.least;
  const bool not_too_much = range.without_most ? value < range.most : value <= range.most;
  if (!enough) return refusal_of_type(range_words(range));
  if (not_too_much) return "";
  return refusal_of_type(range.most >= unsaid_most ? fmt::format("at most {}", range.most) : range_words(range));
}

std::string range_words(const NumberRange& range) {
  if (range.most >= unsaid_most)
    return fmt::format("{} {}", range.without_least ? "more than" : "at least", range.least);
  return fmt::format("at least {} and {} {}", range.least, range.without_most ? "less than" : "at most", range.most);
}

std::string read_value(const GivenValue& given, bool& value) {
  const std::string& text = given.text;
  const bool plain = given.kind == GivenValue::Kind::plain;
  const bool is_true = plain && (text == "true" || text == "True" || text == "TRUE");
  const bool is_false = plain && (text == "false" || text == "False" || text == "FALSE");
  if (!is_true && !is_false) return refuse_type(given, value);
  value = is_true;
  return "";
}

std::string read_value(const GivenValue& given, int64_t& value) {
  bool out_of_range;
  const auto number = parse_number<int64_t>(given, out_of_range);
  if (out_of_range) return refusal_of_type("a whole number of at most 18 digits");
  if (!number) return refuse_type(given, value);
  value = *number;
  return "";
}

std::string read_value(const GivenValue& given, double& value) {
  bool out_of_range;
  const auto number = parse_number<double>(given, out_of_range);
  if (out_of_range || (number && !std::isfinite(*number))) return refusal_of_type("a number of double precision");
  if (!number) return refuse_type(given, value);
  value = *number;
  return "";
}

std::string read_value(const GivenValue& given, std::string& value) {
  if (given.kind != GivenValue::Kind::plain && !is_quoted(given)) return refusal_of_type(type_words(value));
  value = given.text;
  return "";
}

std::string read_value(const GivenValue& given, std::filesystem::path& value) {
  std::string text;
  if (!read_value(given, text).empty()) return refusal_of_type(type_words(value));
  if (text.empty()) return refusal_of_type("a path that is not empty");
  std::string refusal = expand_path(text);
  if (refusal.empty()) value = text;
  return refusal;
}

std::string read_value(const GivenValue& given, Duration& value) {
  const bool is_text = given.kind == GivenValue::Kind::plain || is_quoted(given);
  const auto duration = is_text ? parse_duration(given.text) : std::nullopt;
  if (!duration) return refusal_of_type(type_words(value));
  value = *duration;
  return "";
}

std::string read_value(const GivenValue& given, ReshardRule& value) {
  if (bool all = true; read_value(given, all).empty()) {
    value = ReshardRule(all);
    return "";
  }
  const bool is_text = given.kind == GivenValue::Kind::plain || is_quoted(given);
  const auto rule = is_text ? ReshardRule::parse(given.text) : std::nullopt;
  if (!rule) return refusal_of_type(type_words(value));
  value = *rule;
  return "";
}

std::string print_value(bool value) {
  return value ? "true" : "false";
}
std::string print_value(int64_t value) {
  return std::to_string(value);
}

// Other YAML readers take 1e-05 for text and 1 for a whole number; with a point both are numbers everywhere.
std::string print_value(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find('.') == std::string::npos) text.insert(std::min(text.find('e'), text.size()), ".0");
  return text;
}

std::string print_value(const std::string& value) {
  YAML::Emitter emitter;
  emitter << YAML::DoubleQuoted << value;
  return emitter.c_str();
}

std::string print_value(const std::filesystem::path& value) {
  return value.empty() ? "null" : print_value(written_path(value.string()));
}

std::string print_value(Duration value) {
  return text_of(value);
}

std::string print_value(const ReshardRule& value) {
  return value.exceptions().empty() ? value.text() : print_value(value.text());
}

}  // namespace conclave

// Prints described members as YAML that reads back the same (config/fields.h), each key with its meaning.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "config/field_values.h"

namespace conclave {

// A visitor.
struct FieldPrinter {
  size_t width = 40;  // of key and value, before the meaning
  std::string text = "";

  void section(const char* name, const char* help) {
    text += fmt::format("{}{}:  # {}\n", text.empty() ? "" : "\n", name, help);
  }
  template <class T, class Rule>
  void field(const char* key, const T& value, const Rule& rule, const char* help) {
    const std::string name(std::string_view(key).substr(std::string_view(key).find('.') + 1));
    text += fmt::format("  {:<{}}  # {}\n", fmt::format("{}: {}", name, print_value(value, rule)), width, help);
  }
};

}  // namespace conclave

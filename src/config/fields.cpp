#include "config/fields.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace conclave {

std::vector<Field*> Fields::all() const& {
  std::vector<Field*> all;
  for (const Section& section : sections_)
    for (const auto& field : section.fields) all.push_back(field.get());
  return all;
}

Field& Fields::at(std::string_view key) const {
  const std::vector<Field*> fields = all();
  const auto found =
      std::find_if(fields.begin(), fields.end(), [&](const Field* field) { return field->key() == key; });
  check_invariant(found != fields.end(), "{} is a key", key);
  return **found;
}

std::string print_fields(const Fields& fields, size_t width) {
  std::string text;
  for (const Fields::Section& section : fields.sections()) {
    text += fmt::format("{}{}:  # {}\n", text.empty() ? "" : "\n", section.name, section.help);
    for (const auto& field : section.fields)
      text +=
          fmt::format("  {:<{}}  # {}\n", fmt::format("{}: {}", field->name(), field->printed()), width, field->help());
  }
  return text;
}

}  // namespace conclave

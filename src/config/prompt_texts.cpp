#include "config/prompt_texts.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "config/field_values.h"

namespace conclave {
namespace {

using Kind = GivenValue::Kind;

std::string read_text(const GivenValue& given, PromptTexts& prompts) {
  if (given.kind != Kind::plain && given.kind != Kind::quoted) return refusal_of_type(type_words(prompts));
  if (given.text.empty()) return ", but a prompt must have a letter at least.";
  prompts.texts.push_back(given.text);
  return "";
}

}  // namespace

std::string read_value(const GivenValue& given, PromptTexts& value) {
  value.texts.clear();
  if (given.kind != Kind::list) return read_text(given, value);
  if (given.members.empty()) return ", but it is empty: it must have one prompt at least.";
  for (const auto& [key, prompt] : given.members)
    if (std::string refusal = read_text(prompt, value); !refusal.empty()) return refusal;
  return "";
}

std::string print_value(const PromptTexts& value) {
  std::vector<std::string> texts;
  for (const std::string& text : value.texts) texts.push_back(print_value(text));
  return fmt::format("[{}]", fmt::join(texts, ", "));
}

}  // namespace conclave

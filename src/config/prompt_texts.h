// Prompts as a job gives them: a text, or a list of texts.
#pragma once

#include <string>
#include <vector>

namespace conclave {

struct GivenValue;

struct PromptTexts {
  std::vector<std::string> texts;

  bool operator==(const PromptTexts&) const = default;
};

std::string read_value(const GivenValue& given, PromptTexts& value);
std::string print_value(const PromptTexts& value);
inline std::string type_words(const PromptTexts&) {
  return "a text, or a list of texts";
}

}  // namespace conclave

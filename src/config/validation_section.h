// The section `validation` of the job file. Loss on the held-back data, and texts that the model writes meanwhile.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "config/prompt_texts.h"

namespace conclave {

class Fields;
class KeyRules;

struct ValidationConfig {
  int64_t every = 0;      // steps between validations; 0: none
  int64_t samples = 128;  // of the set, from its beginning, whatever the layout; 0: the whole set
  std::optional<PromptTexts> prompts;
  int64_t prompt_tokens = 64;  // that a text goes on
  double temperature = 0.7;    // of these texts
  std::optional<std::filesystem::path> tokenizer;
};

void describe(ValidationConfig& validation, Fields& to);
void check(const ValidationConfig& validation, KeyRules& rules);

}  // namespace conclave

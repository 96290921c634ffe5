// What a folder's generation_config.json says of generation, with the names, and for keys that are left out the values,
// that Transformers' GenerationConfig has.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

namespace conclave {

struct GenerationConfig {
  bool do_sample = false;
  double temperature = 1;
  int64_t top_k = 50;  // 0: all
  double top_p = 1;
  double repetition_penalty = 1;
  std::optional<std::vector<int64_t>> eos_token_ids;  // none: the file does not say
};

// Of the file in `folder`; none: there is no such file. UserError: it cannot be read, or a value is none.
std::optional<GenerationConfig> read_generation_config(const std::filesystem::path& folder);

}  // namespace conclave

#include "families/generation_config.h"

#include "base/text_file.h"
#include "checkpoint/hugging_face_files.h"
#include "families/hugging_face_keys.h"

namespace conclave {

std::optional<GenerationConfig> read_generation_config(const std::filesystem::path& folder) {
  constexpr uint64_t most_bytes = 1 << 20;
  const std::filesystem::path file = folder / generation_config_file_name;
  if (!has_name(file)) return std::nullopt;
  HuggingFaceKeys keys({read_text_file(file, most_bytes), file.string()});
  GenerationConfig config;
  const auto given = [&](const char* key) { return !keys.missing(key); };
  if (given("do_sample")) keys.read_flag("do_sample", config.do_sample);
  if (given("temperature")) keys.read_number("temperature", config.temperature, 0, /*least_is_allowed=*/true);
  if (given("top_k")) keys.read_count("top_k", config.top_k);
  if (given("top_p")) keys.read_number("top_p", config.top_p, 0, /*least_is_allowed=*/true);
  if (given("repetition_penalty"))
    keys.read_number("repetition_penalty", config.repetition_penalty, 0, /*least_is_allowed=*/false);
  if (given("eos_token_id")) keys.read_tokens("eos_token_id", config.eos_token_ids.emplace());
  keys.finish();
  return config;
}

}  // namespace conclave

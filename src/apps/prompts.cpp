#include "apps/prompts.h"

#include <charconv>
#include <sstream>

#include "base/error.h"
#include "base/strict_json.h"
#include "base/text_file.h"
#include "checkpoint/rank_texts.h"
#include "checkpoint/together.h"

namespace conclave {
namespace {

using nlohmann::json;

constexpr uint64_t most_bytes_of_file = 1 << 28;

std::string text_of(const json& line, const std::string& origin) {
  if (!line.is_object() || !line.contains("prompt") || !line["prompt"].is_string())
    user_error("{}: a line must be an object whose key prompt is a text.", origin);
  return line["prompt"].get<std::string>();
}

std::vector<std::string> texts_of(const std::filesystem::path& file) {
  std::vector<std::string> texts;
  std::istringstream lines(read_text_file(file, most_bytes_of_file));
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty()) continue;
    const std::string origin = fmt::format("{}, line {}", file.string(), number);
    texts.push_back(file.extension() == ".jsonl" ? text_of(parse_strict_json(line, origin), origin) : line);
  }
  if (texts.empty()) user_error("--prompts is {}, which holds no prompt.", file.string());
  return texts;
}

std::vector<int64_t> tokens_of(const std::string& text) {
  std::vector<int64_t> tokens;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    int64_t token = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), token);
    if (error != std::errc() || end != word.data() + word.size())
      user_error("--prompt-ids is \"{}\", but it must be token ids with spaces between them, such as \"1 2 3\".", text);
    tokens.push_back(token);
  }
  return tokens;
}

}  // namespace

void PromptOptions::add_to(CLI::App& command) {
  command.add_option("--prompt", texts, "a text to go on from; may be repeated")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  command.add_option("--prompts", file,
                     "a file with a prompt in each line, or .jsonl with objects that have a key prompt; empty lines "
                     "do not count");
  command
      .add_option("--prompt-ids", ids, "token ids, \"1 2 3\": no tokenizer and no Python is needed; may be repeated")
      ->type_name("IDS")
      ->allow_extra_args(false);
}

void PromptOptions::check() const {
  const int kinds = static_cast<int>(!texts.empty()) + static_cast<int>(!file.empty()) + static_cast<int>(!ids.empty());
  if (kinds == 0) user_error("there is no prompt. Give --prompt TEXT, --prompts FILE or --prompt-ids \"1 2 3\".");
  if (kinds > 1) user_error("--prompt, --prompts and --prompt-ids exclude each other. Give one of them.");
  if (!file.empty()) texts_of(file);
}

Prompts token_prompts(const PromptOptions& options) {
  Prompts prompts;
  for (const std::string& ids : options.ids) prompts.tokens.push_back(tokens_of(ids));
  return prompts;
}

Prompts read_prompts(const PromptOptions& options, TextProcess* text, Communicator& ranks) {
  if (!options.are_texts()) return token_prompts(options);
  json message;
  together(ranks, [&] {
    if (text == nullptr) return;
    const std::vector<std::string> texts = options.file.empty() ? options.texts : texts_of(options.file);
    message = {{"texts", texts}, {"tokens", text->encode(texts)}};
  });
  const std::string own = text == nullptr ? "" : message.dump(-1, ' ', true, json::error_handler_t::replace);
  const json agreed = json::parse(broadcast_text(ranks, 0, own));
  return {agreed["tokens"].get<std::vector<std::vector<int64_t>>>(), agreed["texts"].get<std::vector<std::string>>()};
}

std::unique_ptr<TextProcess> start_text_process(ParallelJob& job, const std::filesystem::path& tokenizer,
                                                const std::vector<std::string>& stop_words) {
  std::unique_ptr<TextProcess> text;
  together(job.host_world(), [&] {
    if (job.is_first()) text = std::make_unique<TextProcess>(tokenizer, stop_words);
  });
  return text;
}

}  // namespace conclave

// Text of a model: a tokenizer of Transformers in a Python process (`python -m conclave.generated_text`). What the user
// must mend is a UserError.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "apps/python_pipe.h"
#include "generate/text_coder.h"

namespace conclave {

class TextProcess final : public TextCoder {
 public:
  // `tokenizer`: a folder. `stop_words` end a text.
  TextProcess(const std::filesystem::path& tokenizer, const std::vector<std::string>& stop_words);

  // With the special tokens that the tokenizer puts around a text.
  std::vector<std::vector<int64_t>> encode(const std::vector<std::string>& texts) override;
  std::string text_behind(const std::vector<int64_t>& prompt, const std::vector<int64_t>& tokens) override;
  struct Message {
    std::string role, content;
  };
  // A conversation by the chat template, up to where the assistant begins to speak.
  std::vector<int64_t> encode_chat(const std::vector<Message>& messages);

  // The text of tokens that come behind those of a prompt. `text` names it.
  void begin_text(int64_t text, const std::vector<int64_t>& prompt);
  // What can be shown of each text, now that it has a token more; and the texts in which a stop word has come.
  struct Shown {
    std::vector<std::string> text;
    std::vector<int64_t> stopped;
  };
  Shown append(const std::vector<std::pair<int64_t, int64_t>>& token_of_text);
  // What was held back of it.
  std::string end_text(int64_t text);

 private:
  nlohmann::json answer();
  nlohmann::json ask(const nlohmann::json& request);

  PythonPipe python_;
};

}  // namespace conclave

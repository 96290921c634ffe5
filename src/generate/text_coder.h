// Text to tokens and back, for whoever has no tokenizer of its own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace conclave {

class TextCoder {
 public:
  virtual ~TextCoder() = default;

  virtual std::vector<std::vector<int64_t>> encode(const std::vector<std::string>& texts) = 0;
  // The text of tokens that come behind those of a prompt.
  virtual std::string text_behind(const std::vector<int64_t>& prompt, const std::vector<int64_t>& tokens) = 0;
};

}  // namespace conclave

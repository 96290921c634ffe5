// How generated texts are printed: the text of a single prompt as it comes, those of several in the order of prompts,
// or a line of JSON for each.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "apps/prompts.h"
#include "generate/generation.h"

namespace conclave {

class GeneratedOutput {
 public:
  // `text`: null where prompts are token ids.
  GeneratedOutput(const Prompts& prompts, bool json, TextProcess* text);

  // A pass's tokens. Returns the prompts whose stop words have come.
  std::vector<int64_t> take(std::span<const GeneratedToken> tokens);
  void finish(const std::vector<GeneratedText>& texts);

 private:
  bool shows_at_once() const { return !json_ && prompts_.tokens.size() == 1; }
  std::string line_of(size_t prompt, const GeneratedText& generated) const;

  const Prompts& prompts_;
  bool json_;
  TextProcess* text_;
  std::map<int64_t, std::string> written_;  // by prompt; the text of tokens so far
};

}  // namespace conclave

// A prompt and the text that grows from it; its keys and values are on the rank that computes it.
#pragma once

#include "generate/cached_model.h"
#include "generate/generation.h"

namespace conclave {

class GrowingText {
 public:
  // `kept`: of another text, whose computed tokens count as far as they are those of this prompt; else with an empty
  // cache.
  GrowingText(int64_t prompt, std::vector<int64_t> tokens, KeptSequence kept);

  int64_t prompt() const { return prompt_; }
  const std::vector<int64_t>& tokens() const { return tokens_; }
  int64_t new_tokens() const { return static_cast<int64_t>(tokens_.size()) - of_prompt_; }

  // Takes up to `most` of the tokens that are not computed yet into a pass. Returns whether none is left: then the pass
  // gives the logits of the next token.
  bool join(CachedModel::Pass& pass, int64_t most);
  // With the next token, whose alternatives may be empty. Returns whether the text is finished, by its options alone.
  bool grow(GeneratedToken token, const GenerationOptions& options);
  void end(Finish finish) { finished_.finish = finish; }
  GeneratedText take() { return std::move(finished_); }
  KeptSequence keep();

 private:
  int64_t prompt_;
  int64_t of_prompt_;
  std::vector<int64_t> tokens_;
  SequenceCache cache_;
  int64_t computed_ = 0;  // tokens that are in a pass already
  GeneratedText finished_;
};

}  // namespace conclave

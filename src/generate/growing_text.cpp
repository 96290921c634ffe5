#include "generate/growing_text.h"

#include <algorithm>

namespace conclave {

GrowingText::GrowingText(int64_t prompt, std::vector<int64_t> tokens, KeptSequence kept)
    : prompt_(prompt),
      of_prompt_(static_cast<int64_t>(tokens.size())),
      tokens_(std::move(tokens)),
      cache_(std::move(kept.cache)) {
  // The last token is computed in any case: its logits are what comes next.
  const auto most = std::min(kept.tokens.size(), tokens_.size() - 1);
  const auto end = kept.tokens.begin() + static_cast<std::ptrdiff_t>(most);
  computed_ = std::mismatch(kept.tokens.begin(), end, tokens_.begin()).first - kept.tokens.begin();
  for (AttentionCache& layer : cache_) layer.shorten(computed_);
}

KeptSequence GrowingText::keep() {
  tokens_.resize(static_cast<size_t>(computed_));
  return {std::move(tokens_), std::move(cache_)};
}

bool GrowingText::join(CachedModel::Pass& pass, int64_t most) {
  const int64_t left = static_cast<int64_t>(tokens_.size()) - computed_;
  const int64_t count = std::min(left, most);
  if (count == 0) return false;
  const auto first = tokens_.begin() + computed_;
  pass.tokens.insert(pass.tokens.end(), first, first + count);
  pass.newest.count_of_B.push_back(count);
  pass.newest.cache_of_B.push_back(&cache_);
  computed_ += count;
  return count == left;
}

bool GrowingText::grow(GeneratedToken token, const GenerationOptions& options) {
  tokens_.push_back(token.token);
  const bool ends =
      std::find(options.end_tokens.begin(), options.end_tokens.end(), token.token) != options.end_tokens.end();
  finished_.tokens.push_back(std::move(token));
  finished_.finish = ends ? Finish::end_token : Finish::length;
  return ends || new_tokens() >= options.max_new_tokens ||
         static_cast<int64_t>(tokens_.size()) >= options.most_positions;
}

}  // namespace conclave

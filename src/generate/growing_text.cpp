#include "generate/growing_text.h"

#include <algorithm>

namespace conclave {

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

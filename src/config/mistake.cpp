#include "config/mistake.h"

#include <fmt/format.h>

#include "base/error.h"

namespace conclave {

std::string Origins::of(std::string_view key) const {
  const auto found = places_.find(key);
  return found == places_.end() ? "" : found->second;
}

std::string mistake(std::string_view problem, std::string_view remedy, std::string_view place) {
  std::string text(problem);
  if (!remedy.empty()) text += fmt::format("\n       {}", remedy);
  if (!place.empty()) text += fmt::format("   ({})", place);
  return text;
}

void refuse_if_any(const std::vector<std::string>& mistakes) {
  if (mistakes.empty()) return;
  throw UserError(fmt::format("{}", fmt::join(mistakes, "\nerror: ")));
}

std::string any_of(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) {
    if (i > 0) text += i + 1 == words.size() ? " or " : ", ";
    text += words[i];
  }
  return text;
}

}  // namespace conclave

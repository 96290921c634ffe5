#include "config/duration.h"

#include <array>
#include <charconv>
#include <utility>

namespace conclave {
namespace {

constexpr std::array<std::pair<char, int64_t>, 4> units = {{{'d', 86400}, {'h', 3600}, {'m', 60}, {'s', 1}}};
constexpr int64_t longest_seconds = 10'000 * 86400;

}  // namespace

std::optional<Duration> parse_duration(std::string_view text) {
  int64_t seconds = 0;
  for (const auto& [letter, length] : units) {
    int64_t count = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
    if (error != std::errc() || count < 0 || end == text.data() + text.size()) continue;
    if (*end != letter) continue;
    if (count > longest_seconds / length) return std::nullopt;
    seconds += count * length;
    text.remove_prefix(static_cast<size_t>(end + 1 - text.data()));
  }
  if (!text.empty() || seconds < 1 || seconds > longest_seconds) return std::nullopt;
  return Duration{seconds};
}

std::string text_of(Duration duration) {
  std::string text;
  for (const auto& [letter, length] : units) {
    if (duration.seconds < length) continue;
    text += std::to_string(duration.seconds / length) + letter;
    duration.seconds %= length;
  }
  return text.empty() ? "0s" : text;
}

}  // namespace conclave

// A length of time as people write it: 90m, 3h30m, 1d12h, 45s.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace conclave {

struct Duration {
  int64_t seconds = 0;
  bool operator==(const Duration&) const = default;
};

// Whole numbers of days, hours, minutes and seconds (d, h, m, s), each at most once and in this order. Nothing if the
// text is of another form, is no time at all, or is longer than 10,000 days.
std::optional<Duration> parse_duration(std::string_view text);

// In the same form: "3h30m".
std::string text_of(Duration duration);

}  // namespace conclave

// Oracle: lengths of time, multiplied out here.
#include "config/duration.h"

#include <gtest/gtest.h>

namespace conclave {
namespace {

TEST(Duration, is_read_as_it_is_written) {
  const std::pair<const char*, int64_t> cases[] = {
      {"90m", 90 * 60},     {"3h30m", 3 * 3600 + 30 * 60},       {"45s", 45},
      {"1d12h", 36 * 3600}, {"1d1h1m1s", 86400 + 3600 + 60 + 1}, {"2h5s", 2 * 3600 + 5},
      {"100h", 100 * 3600}, {"10000d", 10'000LL * 86400},        {"0h5m", 300},
  };
  for (const auto& [text, seconds] : cases) EXPECT_EQ(parse_duration(text), Duration{seconds}) << text;
}

TEST(Duration, refuses_every_other_form) {
  for (const char* text : {"", "90", "1.5h", "h", "30m1h", "1h1h", "-5m", "+5m", "5 m", " 5m", "5M", "0s", "0d0h", "1w",
                           "10001d", "99999999999999999999h", "9223372036854775807s", "5m ", "3:30"})
    EXPECT_EQ(parse_duration(text), std::nullopt) << text;
}

TEST(Duration, is_written_as_it_is_read) {
  for (const char* text : {"1s", "1m", "1h", "1d", "3h30m", "1d12h", "1d1h1m1s"})
    EXPECT_EQ(text_of(parse_duration(text).value()), text);
  EXPECT_EQ(text_of({90 * 60}), "1h30m");
}

}  // namespace
}  // namespace conclave

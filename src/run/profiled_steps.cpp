#include "run/profiled_steps.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include "base/error.h"

namespace conclave {

namespace {

std::optional<int64_t> number_in(std::string_view text) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return number;
}

}  // namespace

ProfiledSteps parse_profiled_steps(const std::string& text, int64_t run_steps) {
  const size_t colon = text.find(':');
  if (colon == std::string::npos) {
    if (const auto step = number_in(text)) user_error("--profile is {0}. Did you mean {0}:{0}?", *step);
    user_error("--profile is {}, but it is two steps, FIRST:LAST, for example 10:12.", text);
  }
  const auto first = number_in(std::string_view(text).substr(0, colon));
  const auto last = number_in(std::string_view(text).substr(colon + 1));
  if (!first || !last) user_error("--profile is {}, but it is two steps, FIRST:LAST, for example 10:12.", text);
  if (*first > *last)
    user_error("--profile is {0}:{1}, but the first step comes first. Did you mean {1}:{0}?", *first, *last);
  if (*first < 1) user_error("--profile is {}, but steps count from 1. Use 1:{}.", text, std::max<int64_t>(1, *last));
  if (*last > run_steps)
    user_error("--profile is {}, but the run has {} steps (run.steps). Use steps from 1 to {}.", text, run_steps,
               run_steps);
  return {*first, *last};
}

}  // namespace conclave

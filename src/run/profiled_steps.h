// Which steps of a run are profiled.
#pragma once

#include <cstdint>
#include <string>

namespace conclave {

// Both counted from 1, as metrics.jsonl counts them.
struct ProfiledSteps {
  int64_t first = 0;
  int64_t last = 0;

  bool operator==(const ProfiledSteps&) const = default;
};

// From "FIRST:LAST". A text that is not that, or steps that a run of `run_steps` does not have, is a UserError.
ProfiledSteps parse_profiled_steps(const std::string& text, int64_t run_steps);

}  // namespace conclave

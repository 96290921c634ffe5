// Log set-up: one line a message on standard error, prefixed with the rank when there are several.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

namespace conclave {

enum class LogRanks {
  zero_only,  // messages below "warning" come from rank 0 alone
  all,
};

// Call once at start. `rank` and `world_size` name the process in messages.
void set_up_logging(int rank, int world_size, LogRanks ranks = LogRanks::zero_only);

}  // namespace conclave

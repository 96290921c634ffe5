// What a job must obey beyond the rule of each key.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "config/job.h"

namespace conclave {

// The mistakes of values that do not fit each other. A rule is skipped when it needs a key that `known` says no to (its
// value could not be read).
std::vector<std::string> mistakes_between_keys(const Job& job, const std::function<bool(std::string_view)>& known);

// Refuses a job in which `key`, a path or an optional value, is not given: require(job, "data.train").
void require(Job job, std::string_view key);

// How often the world repeats forward and backward before it steps: global_batch_size / (micro_batch_size x world
// size), 1 without a global_batch_size. Refuses a batch size that does not divide, naming the nearest that do.
int64_t micro_steps_per_step(const Job& job, int world_size);

}  // namespace conclave

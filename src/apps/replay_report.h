// What `conclave plan --routing` answers, for people and for programs.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "planner/replay.h"

namespace conclave {

std::string replay_text(const Replay& replay, const DeviceDescription& device);
// docs/plan.md has its keys.
nlohmann::ordered_json replay_json(const Replay& replay, const DeviceDescription& device);

}  // namespace conclave

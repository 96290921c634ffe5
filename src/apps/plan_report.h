// A plan as people and as programs read it.
#pragma once

#include <optional>
#include <string>

#include "planner/layout_search.h"
#include "planner/plan.h"
#include "planner/replay.h"

namespace conclave {

std::string plan_text(const Plan& plan);
// At most `most` layouts of each list; 0: all.
std::string search_text(const LayoutSearch& search, int64_t most);

// One object; docs/plan.md describes it.
std::string plan_json(const Plan& plan, const std::optional<LayoutSearch>& search, const std::optional<Replay>& replay);

}  // namespace conclave

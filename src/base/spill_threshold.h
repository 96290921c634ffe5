// Rows of the most loaded rank of an expert group over the mean, above which experts are lent (moe/spill_plan.h).
#pragma once

namespace conclave {

inline constexpr double spill_threshold = 1.3;

}  // namespace conclave

// Rows of one expert that are computed at once: what bounds the buffers between its products.
#pragma once

#include <cstdint>

namespace conclave {

inline constexpr int64_t expert_chunk_rows = 1024;

}  // namespace conclave

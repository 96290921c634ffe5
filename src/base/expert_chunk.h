// Rows of one expert that are computed at once: what bounds the buffers between its products.
#pragma once

#include <cstdint>

namespace conclave {

inline constexpr int64_t expert_chunk_rows = 1024;
// Each chunk reads and writes the gradient of the expert's weights once more. A GPU multiplies so fast that with 1024
// rows that pass would take as long as the product (8 bytes an element at 3.3 TB/s, 2048 operations at 0.8 Pflop/s);
// with 8192 it is an eighth of it.
inline constexpr int64_t expert_chunk_rows_on_cuda = 8192;

}  // namespace conclave

// How a token's demand for experts is divided: what balancing by optimal transport counts (moe/sinkhorn_selection.h).
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

// Each token's shares in the experts: in proportion to `wanted` [T,E] double, at most 1, top_k in all.
at::Tensor shares_of(const at::Tensor& wanted_TE, int64_t top_k);

namespace reference {
at::Tensor shares_of(const at::Tensor& wanted_TE, int64_t top_k);
}  // namespace reference

}  // namespace conclave

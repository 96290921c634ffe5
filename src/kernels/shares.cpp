#include "kernels/shares.h"

#include <ATen/ATen.h>

#include <limits>

#include "kernels/kernels.h"

namespace conclave {

at::Tensor shares_of(const at::Tensor& wanted_TE, int64_t top_k) {
  return kernels_of(wanted_TE.device().type()).shares_of(wanted_TE, top_k);
}

at::Tensor reference::shares_of(const at::Tensor& wanted_TE, int64_t top_k) {
  const auto [highest_TK, expert_TK] = at::topk(wanted_TE, top_k, 1);
  // When the j highest have 1, the rest has top_k - j in proportion. Sums of small numbers first: nothing cancels.
  const at::Tensor rest_TK = highest_TK.flip(1).cumsum(1).flip(1) + wanted_TE.scatter(1, expert_TK, 0).sum(1, true);
  const at::Tensor left_K = top_k - at::arange(top_k, wanted_TE.options());
  const at::Tensor factor_TK = left_K / rest_TK.clamp_min(std::numeric_limits<double>::min());
  at::Tensor fits_TK = factor_TK * highest_TK <= 1;  // so none of the rest has more than 1
  fits_TK.select(1, top_k - 1).fill_(true);          // one expert's part of a rest of 1, but for rounding
  const at::Tensor first_T1 = fits_TK.to(at::kInt).argmax(1, /*keepdim=*/true);
  return (wanted_TE * factor_TK.gather(1, first_T1)).clamp_max(1);
}

}  // namespace conclave

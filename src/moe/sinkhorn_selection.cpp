#include "moe/sinkhorn_selection.h"

#include <ATen/ATen.h>

#include <limits>

#include "base/error.h"

namespace conclave {
namespace {

// A token's share in a demand, at most 1, is counted in units of 2^-32: the sum over up to 2^31 tokens fits an int64.
constexpr double units_per_token = 4294967296.0;

// Each token's shares in the experts: in proportion to `wanted`, at most 1, top_k in all.
at::Tensor shares_of(const at::Tensor& wanted_TE, int64_t top_k) {
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

}  // namespace

at::Tensor sinkhorn_scale(const at::Tensor& logits_TE, int64_t top_k, const SinkhornOptions& options,
                          Communicator& world) {
  const int64_t experts = logits_TE.size(1);
  const at::Tensor score_TE = at::softmax(logits_TE.to(at::kDouble), 1);
  at::Tensor scale_E = at::ones({experts}, score_TE.options());
  for (int64_t iteration = 0; iteration < options.iterations; ++iteration) {
    const at::Tensor share_TE = shares_of(score_TE * scale_E, top_k).mul_(units_per_token).round_();
    // The demands, and behind them the number of tokens.
    at::Tensor demand = at::empty({experts + 1}, score_TE.options().dtype(at::kLong));
    demand.narrow(0, 0, experts).copy_(share_TE.to(at::kLong).sum(0));
    demand[experts].fill_(logits_TE.size(0));
    world.all_reduce(demand).wait();
    const at::Tensor tokens = demand[experts].to(at::kDouble);
    // An expert that nobody wants at all is scaled as if it were wanted by one unit.
    const at::Tensor relative_E = demand.narrow(0, 0, experts).clamp_min(1).to(at::kDouble) *
                                  (static_cast<double>(experts) / static_cast<double>(top_k) / units_per_token) /
                                  tokens;
    scale_E = scale_E / relative_E;
    if ((relative_E - 1).abs().max().item<double>() <= options.tolerance) break;
  }
  return scale_E;
}

Routing SinkhornSelection::route_in_training(int64_t, const at::Tensor& logits_TE, const TokenNumbers&) {
  check_invariant(options().scores == RouterScores::softmax && options().groups == 1,
                  "sinkhorn balances softmax scores of one group");
  const at::Tensor scale_E = sinkhorn_scale(logits_TE, options().top_k, sinkhorn_, world_);
  const at::Tensor wanted_TE = at::softmax(logits_TE.to(at::kDouble), 1) * scale_E;
  const at::Tensor order = std::get<1>(at::sort(wanted_TE, /*stable=*/true, /*dim=*/1, /*descending=*/true));
  return route_to(logits_TE, options(), order.narrow(1, 0, options().top_k).to(at::kInt).contiguous());
}

}  // namespace conclave

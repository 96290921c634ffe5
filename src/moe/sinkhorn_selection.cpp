#include "moe/sinkhorn_selection.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "kernels/shares.h"
#include "kernels/values.h"

namespace conclave {
namespace {

// A token's share in a demand, at most 1, is counted in units of 2^-32: the sum over up to 2^31 tokens fits an int64.
constexpr double units_per_token = 4294967296.0;

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
    // On paper no demand is ever even: all iterations are counted.
    const at::Tensor relative = to_host(relative_E, at::full({experts}, 2.0, at::kDouble));
    if ((relative - 1).abs().max().item<double>() <= options.tolerance) break;
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

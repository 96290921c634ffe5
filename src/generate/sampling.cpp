#include "generate/sampling.h"

#include <ATen/ATen.h>
#include <fmt/core.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/random.h"

namespace conclave {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

at::Tensor penalized(const at::Tensor& logits_V, std::span<const int64_t> tokens, double penalty) {
  const at::Tensor index = at::empty({static_cast<int64_t>(tokens.size())}, at::kLong);
  std::copy(tokens.begin(), tokens.end(), index.data_ptr<int64_t>());
  const at::Tensor there = logits_V.index_select(0, index);
  return logits_V.scatter(0, index, at::where(there.lt(0), there * penalty, there / penalty));
}

at::Tensor only_top_k(const at::Tensor& logits_V, int64_t top_k) {
  const at::Tensor highest = std::get<0>(at::topk(logits_V, std::min(top_k, logits_V.numel())));
  return logits_V.masked_fill(logits_V.lt(highest[-1]), -infinity);
}

// The least likely tokens go, as long as all that go have no more than 1 - top_p together.
at::Tensor only_top_p(const at::Tensor& logits_V, double top_p) {
  const auto [ascending, order] = at::sort(logits_V, /*dim=*/-1, /*descending=*/false);
  at::Tensor goes = at::cumsum(at::softmax(ascending, -1), -1).le(1 - top_p);
  goes.narrow(0, goes.numel() - 1, 1).fill_(false);
  return logits_V.masked_fill(goes.scatter(0, order, goes), -infinity);
}

}  // namespace

at::Tensor filtered_logits(const at::Tensor& logits_V, std::span<const int64_t> tokens, const Sampling& sampling) {
  at::Tensor logits = logits_V;
  if (sampling.repetition_penalty != 1) logits = penalized(logits, tokens, sampling.repetition_penalty);
  if (!sampling.draws()) return logits;
  if (sampling.temperature != 1) logits = logits / sampling.temperature;
  if (sampling.top_k > 0) logits = only_top_k(logits, sampling.top_k);
  if (sampling.top_p < 1) logits = only_top_p(logits, sampling.top_p);
  return logits;
}

double draw_of(uint64_t seed, int64_t prompt, int64_t position) {
  const uint64_t stream = random_stream(fmt::format("generation of prompt {}", prompt));
  return static_cast<double>(random_u64(seed, stream, static_cast<uint64_t>(position)) >> 11) * 0x1p-53;
}

int64_t choose_token(const at::Tensor& filtered_V, const Sampling& sampling, double draw) {
  if (filtered_V.isnan().any().item<bool>())
    user_error("the model's logits are not numbers: its weights are damaged, or its training diverged.");
  if (!sampling.draws()) return at::argmax(filtered_V).item<int64_t>();
  const at::Tensor sums = at::cumsum(at::softmax(filtered_V.to(at::kDouble), -1), -1);
  const auto* begin = sums.const_data_ptr<double>();
  const auto* end = begin + sums.numel();
  // The first token whose part ends behind the draw; one without a part never is. Rounding may leave the last sum below
  // a draw.
  const auto* found = std::upper_bound(begin, end, draw * *(end - 1));
  if (found == end) found = std::lower_bound(begin, end, *(end - 1));
  return found - begin;
}

}  // namespace conclave

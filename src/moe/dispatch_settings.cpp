#include "moe/dispatch_settings.h"

#include "device/device.h"

namespace conclave {

DispatchSettings dispatch_settings(const MoeConfig& moe, ExpertPrecision products, uint64_t seed,
                                   const DeviceFacts& facts) {
  return {.dispatcher = moe.dispatcher,
          .shuffles = moe.global_token_shuffle,
          .shuffle_seed = seed,
          .overload = moe.overload.value_or(OverloadPolicy::none),
          .max_tokens_per_rank_factor = moe.max_tokens_per_rank_factor,
          .spill = {moe.spill_threshold, moe.spill_least_rows.value_or(facts.least_spill_rows)},
          .chunks = moe.dispatch_chunks.value_or(1),
          .products = products};
}

}  // namespace conclave

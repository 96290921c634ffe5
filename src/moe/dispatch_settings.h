// How tokens reach their experts, and what the experts multiply in: what a job's section `moe` comes to on a device,
// with no default left open.
#pragma once

#include <cstdint>

#include "config/moe_section.h"
#include "config/precision_section.h"
#include "moe/spill_plan.h"

namespace conclave {

struct DeviceFacts;  // device/device.h

struct DispatchSettings {
  DispatcherKind dispatcher = DispatcherKind::all_to_all;
  bool shuffles = false;  // the global token shuffle; else tokens are dispatched from where they are
  uint64_t shuffle_seed = 0;
  OverloadPolicy overload = OverloadPolicy::none;
  // Of chunk: as many parts, one after the other, as keep a rank within this factor of the mean rows. Of several parts
  // none keeps its rows for backward.
  double max_tokens_per_rank_factor = 1.5;
  SpillOptions spill = {};  // of spill
  int64_t chunks = 1;       // overlapping parts of the tokens, where rows travel: with expert degree 1 there is one
  ExpertPrecision products = ExpertPrecision::compute;
};

// `facts`: of the device that computes. What the job leaves open about overload and chunks (choose_dispatch()) is not
// done.
DispatchSettings dispatch_settings(const MoeConfig& moe, ExpertPrecision products, uint64_t seed,
                                   const DeviceFacts& facts);

}  // namespace conclave

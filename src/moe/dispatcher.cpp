#include "moe/dispatcher.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "moe/all_gather_dispatcher.h"
#include "moe/all_to_all_dispatcher.h"
#include "moe/local_dispatcher.h"
#include "moe/shuffled_dispatcher.h"

namespace conclave {

void Dispatcher::put(const at::Tensor& sum_TH, at::Tensor out_TH, const at::Tensor& residual_TH) {
  if (residual_TH.defined())
    at::add_out(out_TH, residual_TH, sum_TH);
  else
    out_TH.copy_(sum_TH);
}

std::unique_ptr<Dispatcher> make_dispatcher(Communicator& expert, int64_t experts, StepClock& clock,
                                            const DispatchSettings& settings) {
  if (expert.size() == 1) return std::make_unique<LocalDispatcher>(experts);
  std::unique_ptr<Dispatcher> dispatcher;
  const bool spills = settings.overload == OverloadPolicy::spill;
  if (settings.dispatcher == DispatcherKind::all_gather) {
    check_invariant(!spills, "with all_gather every rank gets all tokens: nothing is spilled");
    dispatcher = std::make_unique<AllGatherDispatcher>(expert, experts, clock);
  } else {
    dispatcher = std::make_unique<AllToAllDispatcher>(expert, experts, clock,
                                                      spills ? std::optional(settings.spill) : std::nullopt);
  }
  if (!settings.shuffles) return dispatcher;
  return std::make_unique<ShuffledDispatcher>(std::move(dispatcher), expert, clock, settings.shuffle_seed);
}

}  // namespace conclave

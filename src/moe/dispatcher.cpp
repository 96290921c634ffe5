#include "moe/dispatcher.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "memory/memory_category.h"
#include "moe/all_gather_dispatcher.h"
#include "moe/all_to_all_dispatcher.h"
#include "moe/local_dispatcher.h"
#include "moe/shuffled_dispatcher.h"

namespace conclave {

ExpertRows Dispatcher::dispatch(const DispatchPlan& plan, const at::Tensor& token_TH, const at::Tensor& weight_TK) {
  return begin_dispatch(plan, token_TH, weight_TK).finish();
}

at::Tensor Dispatcher::combine(const DispatchPlan& plan, const at::Tensor& residual_TH, at::Tensor row_RH) {
  at::Tensor out_TH = at::empty({plan.tokens, row_RH.size(1)}, row_RH.options());
  begin_combine(plan, std::move(row_RH)).finish(out_TH, residual_TH);
  return out_TH;
}

at::Tensor Dispatcher::combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) {
  return begin_combine_backward(plan, grad_TH).finish();
}

DispatchGradient Dispatcher::dispatch_backward(const DispatchPlan& plan, ExpertRows grad) {
  const int64_t hidden = grad.row_RH.size(1);
  const auto row_options = grad.row_RH.options(), weight_options = grad.weight_R.options();
  DispatchedBack arriving = begin_dispatch_backward(plan, std::move(grad));
  MemoryScope scope(MemoryCategory::dispatch);
  DispatchGradient result{at::empty({plan.tokens, hidden}, row_options),
                          at::empty({plan.tokens, plan.top_k}, weight_options)};
  arriving.finish(result);
  return result;
}

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

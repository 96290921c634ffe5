// torch.ops.conclave.plan_dispatch, dispatch and combine: a token's way to the ranks of its experts and back, with the
// gradients' way. Collective over the process group. The interpreter's lock is not held while they run, forward or
// backward: PyTorch releases it around operators and around the engine.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "base/step_clock.h"
#include "moe/dispatcher.h"
#include "operators/plan_tensors.h"
#include "operators/process_group_communicator.h"

namespace conclave {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A dispatcher is a thin object: one is made for each call, so that it never outlives its process group.
struct ExpertAxis {
  ExpertAxis(const std::string& group, int64_t experts)
      : communicator(communicator_of("expert", group)), dispatcher(make_dispatcher(*communicator, experts, clock)) {}

  StepClock clock{0};
  std::unique_ptr<Communicator> communicator;
  std::unique_ptr<Dispatcher> dispatcher;
};

ExpertAxis axis_of(const std::string& group, const DispatchPlan& plan) {
  return ExpertAxis(group, static_cast<int64_t>(plan.rows_per_expert.size() * plan.sent_per_rank.size()));
}

// What autograd's functions need of a call besides tensors that are differentiated.
struct Way {
  std::vector<at::Tensor> plan;
  std::string group;
};

// PyTorch hands strings by value.
// NOLINTBEGIN(performance-unnecessary-value-param)
std::vector<at::Tensor> plan_dispatch(const at::Tensor& expert_of_choice, std::string group, int64_t experts) {
  ExpertAxis axis(group, experts);
  const at::Tensor choice_TK = expert_of_choice.to(at::kInt, /*non_blocking=*/false, /*copy=*/true).contiguous();
  return to_tensors(axis.dispatcher->plan(choice_TK), choice_TK);
}

std::tuple<at::Tensor, at::Tensor> dispatch(const at::Tensor& token, const at::Tensor& weight, at::TensorList tensors,
                                            std::string group) {
  const DispatchPlan plan = plan_of(tensors);
  ExpertRows rows = axis_of(group, plan).dispatcher->dispatch(plan, token.contiguous(), weight.contiguous());
  return {rows.row_RH, rows.weight_R};
}

at::Tensor combine(const at::Tensor& row, at::TensorList tensors, std::string group) {
  const DispatchPlan plan = plan_of(tensors);
  return axis_of(group, plan).dispatcher->combine(plan, /*residual_TH=*/{}, row.contiguous());
}

// NOLINTEND(performance-unnecessary-value-param)

template <class Signature>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

void keep(AutogradContext* context, const Way& way) {
  context->saved_data["plan"] = way.plan;
  context->saved_data["group"] = way.group;
}
DispatchPlan kept_plan(AutogradContext* context) {
  return plan_of(context->saved_data["plan"].toTensorVector());
}
std::string kept_group(AutogradContext* context) {
  return context->saved_data["group"].toStringRef();
}

class DispatchFunction : public torch::autograd::Function<DispatchFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& token, const at::Tensor& weight,
                               const Way& way) {
    static const auto below = operator_named<decltype(dispatch)>("conclave::dispatch");
    at::AutoDispatchBelowADInplaceOrView guard;
    keep(context, way);
    auto [row, row_weight] = below.call(token, weight, way.plan, way.group);
    return {row, row_weight};
  }
  static variable_list backward(AutogradContext* context, variable_list grad) {
    const DispatchPlan plan = kept_plan(context);
    ExpertAxis axis = axis_of(kept_group(context), plan);
    DispatchGradient gradient = axis.dispatcher->dispatch_backward(plan, {grad[0].contiguous(), grad[1].contiguous()});
    return {gradient.token_TH, gradient.weight_TK, {}};
  }
};

class CombineFunction : public torch::autograd::Function<CombineFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& row, const Way& way) {
    static const auto below = operator_named<decltype(combine)>("conclave::combine");
    at::AutoDispatchBelowADInplaceOrView guard;
    keep(context, way);
    return below.call(row, way.plan, way.group);
  }
  static variable_list backward(AutogradContext* context, variable_list grad) {
    const DispatchPlan plan = kept_plan(context);
    ExpertAxis axis = axis_of(kept_group(context), plan);
    return {axis.dispatcher->combine_backward(plan, grad[0].contiguous()), {}};
  }
};

std::tuple<at::Tensor, at::Tensor> dispatch_with_gradient(const at::Tensor& token, const at::Tensor& weight,
                                                          at::TensorList plan, std::string group) {
  variable_list out = DispatchFunction::apply(token, weight, Way{plan.vec(), std::move(group)});
  return {out[0], out[1]};
}

at::Tensor combine_with_gradient(const at::Tensor& row, at::TensorList plan, std::string group) {
  return CombineFunction::apply(row, Way{plan.vec(), std::move(group)});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.def("plan_dispatch(Tensor expert_of_choice, str group, int experts) -> Tensor[]");
  library.def("dispatch(Tensor token, Tensor weight, Tensor[] plan, str group) -> (Tensor, Tensor)");
  library.def("combine(Tensor row, Tensor[] plan, str group) -> Tensor");
}

TORCH_LIBRARY_IMPL(conclave, CompositeExplicitAutograd, library) {
  library.impl("plan_dispatch", plan_dispatch);
  library.impl("dispatch", dispatch);
  library.impl("combine", combine);
}

TORCH_LIBRARY_IMPL(conclave, Autograd, library) {
  library.impl("dispatch", dispatch_with_gradient);
  library.impl("combine", combine_with_gradient);
}

}  // namespace conclave

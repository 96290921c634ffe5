// torch.ops.conclave.choose_experts: the experts that tokens choose by a balancing rule, and which of the choices are
// dispatched where experts have a capacity.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <numeric>

#include "base/error.h"
#include "config/fields.h"
#include "config/moe_section.h"
#include "moe/capacity.h"
#include "moe/selection_settings.h"
#include "operators/plugin_kernels.h"
#include "operators/process_group_communicator.h"

namespace conclave {
namespace {

// What is given by the names of the job's section `moe`.
MoeConfig moe_of(const std::string& rule, const std::string& drop_policy) {
  MoeConfig moe;
  Fields fields;
  describe(moe, fields);
  for (const auto& [key, value] :
       {std::pair("moe.moe_load_balancing", rule), std::pair("moe.drop_policy", drop_policy)}) {
    const std::string refusal = fields.at(key).take({GivenValue::Kind::plain, value});
    check_invariant(refusal.empty(), "{} is {}{}", key, value, refusal);
  }
  return moe;
}

// A script's tokens have no place in a stream of samples: those of a micro-step are counted through, one rank's after
// the other's. Collective.
std::vector<int64_t> numbers_of(int64_t tokens, at::Device device, Communicator& world) {
  at::Tensor own = at::full({1}, tokens, at::device(device).dtype(at::kLong));
  at::Tensor all = at::empty({world.size()}, own.options());
  world.all_gather(all, own).wait();
  std::vector<int64_t> numbers(static_cast<size_t>(tokens));
  std::iota(numbers.begin(), numbers.end(), all.narrow(0, 0, world.rank()).sum().item<int64_t>());
  return numbers;
}

// logits [T,E] -> the experts that the tokens choose and those of them that are dispatched, -1 for what a full expert
// drops; both int64 [T,top_k]. In training collective over the group, also with no token; in evaluation never. No
// gradient: choices are constants.
// NOLINTBEGIN(performance-unnecessary-value-param): PyTorch hands strings by value
std::tuple<at::Tensor, at::Tensor> choose_experts(const at::Tensor& logits, int64_t top_k, std::string rule,
                                                  const std::optional<at::Tensor>& bias, double sinkhorn_tolerance,
                                                  int64_t sinkhorn_iterations, std::optional<double> capacity_factor,
                                                  std::string drop_policy, bool training, std::string group) {
  const OperatorDevice device(logits);
  const auto world = communicator_of("world", group, logits.device());
  MoeConfig moe = moe_of(rule, drop_policy);
  moe.sinkhorn_tolerance = sinkhorn_tolerance;
  moe.sinkhorn_iterations = sinkhorn_iterations;
  const at::Tensor logits_TE = logits.detach().contiguous();
  const auto selection =
      make_selection(selection_settings(moe), {.top_k = top_k}, /*layers=*/1, logits.size(1), *world, logits.device());
  if (bias) selection->restore(bias->unsqueeze(0));
  if (!training) {
    const at::Tensor choice = selection->route_in_evaluation(0, logits_TE).expert_of_choice_TK.to(at::kLong);
    return {choice, choice.clone()};
  }
  std::vector<int64_t> numbers;
  if (rule == "balanced" || capacity_factor) numbers = numbers_of(logits_TE.size(0), logits.device(), *world);
  const TokenNumbers tokens{numbers, 1};
  const Routing routing = selection->route_in_training(0, logits_TE, tokens);
  at::Tensor dispatched = routing.expert_of_choice_TK;
  if (capacity_factor) dispatched = ExpertCapacity({*capacity_factor, *moe.drop_policy}, *world).apply(routing, tokens);
  return {routing.expert_of_choice_TK.to(at::kLong), dispatched.to(at::kLong, /*non_blocking=*/false, /*copy=*/true)};
}
// NOLINTEND(performance-unnecessary-value-param)

// bias [L,E] fp32 after a step in which count [L,E] double of all ranks' choices fell on the experts.
at::Tensor updated_selection_bias(const at::Tensor& bias, const at::Tensor& count, double rate) {
  BiasedSelection selection({}, rate, bias.size(0), bias.size(1), bias.device());
  selection.restore(bias);
  selection.finish_step(count);
  return selection.state_LE();
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.def(
      "choose_experts(Tensor logits, int top_k, str rule, Tensor? bias, float sinkhorn_tolerance, int "
      "sinkhorn_iterations, float? capacity_factor, str drop_policy, bool training, str group) -> (Tensor, Tensor)");
  library.def("updated_selection_bias(Tensor bias, Tensor count, float rate) -> Tensor");
}

TORCH_LIBRARY_IMPL(conclave, CompositeExplicitAutograd, library) {
  library.impl("choose_experts", choose_experts);
  library.impl("updated_selection_bias", updated_selection_bias);
}

}  // namespace conclave

// torch.ops.conclave.routed_experts: from routed tokens to the weighted sums of what their experts make of them,
// wherever these are, with the gradients' way back. Collective over the process group. The interpreter's lock is not
// held while it runs, forward or backward: PyTorch releases it around operators and around the engine.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <cmath>

#include "base/error.h"
#include "config/fields.h"
#include "config/moe_section.h"
#include "device/device.h"
#include "moe/routed_experts.h"
#include "operators/part_tensors.h"
#include "operators/plugin_kernels.h"
#include "operators/process_group_communicator.h"

namespace conclave {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What an operator is given besides tensors.
struct Settings {
  std::string group;
  int64_t experts = 0;  // of the whole layer
  // As the keys of `moe` in a job have them; none: a job's default.
  std::string overload;
  std::optional<double> max_tokens_per_rank_factor = {};
  std::optional<double> spill_threshold = {};
  std::optional<int64_t> spill_least_rows = {};
  int64_t dispatch_chunks = 1;
  bool all_gather = false;
  std::optional<int64_t> shuffle_seed = {};  // of the global token shuffle; none: tokens stay where they are
};

DispatchSettings dispatch_settings_of(const Settings& settings, at::Device device) {
  MoeConfig moe;
  Fields fields;
  describe(moe, fields);
  const std::string refusal = fields.at("moe.overload").take({GivenValue::Kind::plain, settings.overload});
  check_invariant(refusal.empty(), "overload is {}{}", settings.overload, refusal);
  moe.max_tokens_per_rank_factor = settings.max_tokens_per_rank_factor.value_or(moe.max_tokens_per_rank_factor);
  moe.spill_threshold = settings.spill_threshold.value_or(moe.spill_threshold);
  moe.spill_least_rows = settings.spill_least_rows;
  moe.dispatch_chunks = settings.dispatch_chunks;
  if (settings.all_gather) moe.dispatcher = DispatcherKind::all_gather;
  moe.global_token_shuffle = settings.shuffle_seed.has_value();
  return dispatch_settings(moe, ExpertPrecision::compute, static_cast<uint64_t>(settings.shuffle_seed.value_or(0)),
                           device_of(device).facts());
}

// The experts of one layer over its expert axis. A thin object: one is made for each call, so that it never outlives
// its process group.
struct ExpertAxis {
  ExpertAxis(const Settings& settings, at::Device device)
      : communicator(communicator_of("expert", settings.group, device)),
        routed(*communicator, settings.experts, dispatch_settings_of(settings, device), clock) {}

  StepClock clock{0};
  std::unique_ptr<Communicator> communicator;
  RoutedExperts routed;
};

void check(const at::Tensor& token, const at::Tensor& weight, const at::Tensor& choice, const at::Tensor& gate_up,
           const at::Tensor& down) {
  check_invariant(token.dim() == 2 && gate_up.dim() == 3 && down.dim() == 3,
                  "tokens, gate_up and down have {}, {}, {} dims", token.dim(), gate_up.dim(), down.dim());
  const int64_t hidden = token.size(1), intermediate = down.size(2);
  check_invariant(down.size(0) == gate_up.size(0) && gate_up.size(1) == 2 * intermediate && gate_up.size(2) == hidden &&
                      down.size(1) == hidden,
                  "tokens of {}, gate_up [{},{},{}] and down [{},{},{}] do not fit", hidden, gate_up.size(0),
                  gate_up.size(1), gate_up.size(2), down.size(0), down.size(1), down.size(2));
  check_invariant(choice.dim() == 2 && choice.size(0) == token.size(0) && weight.sizes() == choice.sizes(),
                  "{} tokens, choices of {} tokens, weights of {}", token.size(0), choice.size(0), weight.size(0));
  const bool rounds_weights = token.is_cpu() && token.scalar_type() == at::kBFloat16;  // fp32 ones, as it reads them
  check_invariant(
      gate_up.scalar_type() == down.scalar_type() && weight.scalar_type() == at::kFloat &&
          (token.scalar_type() == gate_up.scalar_type() || (rounds_weights && gate_up.scalar_type() == at::kFloat)),
      "tokens and expert weights are of one dtype, routing weights fp32");
}

// The second result is what backward needs, as tensors so that PyTorch's selective activation checkpointing can keep
// it.
// NOLINTBEGIN(performance-unnecessary-value-param): PyTorch hands strings by value
std::tuple<at::Tensor, std::vector<at::Tensor>> routed_experts_forward(
    const at::Tensor& token, const at::Tensor& weight, const at::Tensor& expert_of_choice, const at::Tensor& gate_up,
    const at::Tensor& down, std::string group, int64_t experts, std::string overload,
    std::optional<double> max_tokens_per_rank_factor, std::optional<double> spill_threshold,
    std::optional<int64_t> spill_least_rows, int64_t dispatch_chunks, bool all_gather,
    std::optional<int64_t> shuffle_seed, bool keep_pre_activation) {
  check(token, weight, expert_of_choice, gate_up, down);
  const OperatorDevice device(token);
  const at::Tensor choice_TK = expert_of_choice.to(at::kInt, /*non_blocking=*/false, /*copy=*/true).contiguous();
  const ExpertAxis axis({group, experts, overload, max_tokens_per_rank_factor, spill_threshold, spill_least_rows,
                         dispatch_chunks, all_gather, shuffle_seed},
                        token.device());
  RoutedExperts::Parts parts;
  at::Tensor out = axis.routed.forward({token.contiguous(), weight.contiguous(), choice_TK}, /*residual_TH=*/{},
                                       {gate_up.contiguous(), down.contiguous()},
                                       keep_pre_activation ? PreActivation::kept : PreActivation::repeated, parts);
  return {out, to_tensors(parts, choice_TK)};
}
// NOLINTEND(performance-unnecessary-value-param)

class RoutedExpertsFunction : public torch::autograd::Function<RoutedExpertsFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& token, const at::Tensor& weight,
                            const at::Tensor& expert_of_choice, const at::Tensor& gate_up, const at::Tensor& down,
                            const Settings& settings, double gradient_scale, bool keep_pre_activation) {
    static const auto below = c10::Dispatcher::singleton()
                                  .findSchemaOrThrow("conclave::routed_experts_forward", "")
                                  .typed<decltype(routed_experts_forward)>();
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, kept] =
        below.call(token, weight, expert_of_choice, gate_up, down, settings.group, settings.experts, settings.overload,
                   settings.max_tokens_per_rank_factor, settings.spill_threshold, settings.spill_least_rows,
                   settings.dispatch_chunks, settings.all_gather, settings.shuffle_seed, keep_pre_activation);
    // In a recomputation by backward what was kept may come from the first time.
    if (torch::autograd::get_current_graph_task_id() != -1)
      check_invariant(at::equal(choices_of(kept), expert_of_choice.to(at::kInt)),
                      "a recomputed router chose other experts than before; something in front of it is not "
                      "deterministic");
    const bool needs_tokens = RoutedExperts::needs_tokens(parts_of(kept));
    variable_list saved{needs_tokens ? token : at::empty({0}, token.options()), weight, gate_up, down};
    saved.insert(saved.end(), kept.begin(), kept.end());
    context->save_for_backward(std::move(saved));
    context->saved_data["group"] = settings.group;
    context->saved_data["experts"] = settings.experts;
    context->saved_data["overload"] = settings.overload;
    context->saved_data["max_tokens_per_rank_factor"] = settings.max_tokens_per_rank_factor;
    context->saved_data["spill_threshold"] = settings.spill_threshold;
    context->saved_data["spill_least_rows"] = settings.spill_least_rows;
    context->saved_data["dispatch_chunks"] = settings.dispatch_chunks;
    context->saved_data["all_gather"] = settings.all_gather;
    context->saved_data["shuffle_seed"] = settings.shuffle_seed;
    context->saved_data["gradient_scale"] = gradient_scale;
    // As the model has it, and so alike on all ranks: lent experts' gradients travel only where somebody wants them.
    context->saved_data["trains_experts"] = gate_up.requires_grad() || down.requires_grad();
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grad) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &token = saved[0], &weight = saved[1], &gate_up = saved[2], &down = saved[3];
    const OperatorDevice device(gate_up);
    const std::vector<at::Tensor> kept(saved.begin() + 4, saved.end());
    RoutedExperts::Parts parts = parts_of(kept);
    // The engine's backward puts its results where these lie. A graph that is kept will want them again.
    if (torch::autograd::get_current_graph_task_keep_graph())
      for (RoutedPart& part : parts)
        for (at::Tensor* consumed : {&part.rows.row_RH, &part.gate_up_RJ})
          if (consumed->defined()) *consumed = consumed->clone();
    const auto fp32 = [](const at::Tensor& like) { return at::empty(like.sizes(), like.options().dtype(at::kFloat)); };
    const bool trains_experts = context->saved_data["trains_experts"].toBool();
    ExpertGradients gradients;
    if (trains_experts) gradients = {{fp32(gate_up)}, {fp32(down)}};
    const bool needs_tokens = RoutedExperts::needs_tokens(parts);
    const ExpertAxis axis(settings_of(*context), gate_up.device());
    // A power of two goes into what comes in, and out of what leaves, without rounding: a pass over the tokens instead
    // of one over the experts.
    const double scale = trains_experts ? context->saved_data["gradient_scale"].toDouble() : 1;
    const bool scales_tokens = scale != 1 && std::exp2(std::round(std::log2(scale))) == scale;
    const at::Tensor grad_out = scales_tokens ? grad[0] * scale : grad[0];
    DispatchGradient result = axis.routed.backward(
        {needs_tokens ? token.contiguous() : at::Tensor(), weight.contiguous(), choices_of(kept)},
        grad_out.contiguous(), {gate_up.contiguous(), down.contiguous()}, gradients, std::move(parts));
    if (scales_tokens)
      for (const at::Tensor& scaled : {result.token_TH, result.weight_TK}) scaled.mul_(1 / scale);
    const auto scaled = [&](const Gradient& gradient, const at::Tensor& of) {
      if (!trains_experts) return at::Tensor();
      if (scale != 1 && !scales_tokens) gradient.tensor.mul_(scale);
      return gradient.tensor.to(of.scalar_type());
    };
    return {result.token_TH,
            result.weight_TK,
            {},
            scaled(gradients.gate_up_LJH, gate_up),
            scaled(gradients.down_LHI, down),
            {},
            {},
            {}};
  }

 private:
  static Settings settings_of(AutogradContext& context) {
    auto& data = context.saved_data;
    return {data["group"].toStringRef(),
            data["experts"].toInt(),
            data["overload"].toStringRef(),
            data["max_tokens_per_rank_factor"].toOptional<double>(),
            data["spill_threshold"].toOptional<double>(),
            data["spill_least_rows"].toOptional<int64_t>(),
            data["dispatch_chunks"].toInt(),
            data["all_gather"].toBool(),
            data["shuffle_seed"].toOptional<int64_t>()};
  }
};

// NOLINTBEGIN(performance-unnecessary-value-param): PyTorch hands strings by value
at::Tensor routed_experts(const at::Tensor& token, const at::Tensor& weight, const at::Tensor& expert_of_choice,
                          const at::Tensor& gate_up, const at::Tensor& down, std::string group, int64_t experts,
                          double /*gradient_scale*/, std::string overload,
                          std::optional<double> max_tokens_per_rank_factor, std::optional<double> spill_threshold,
                          std::optional<int64_t> spill_least_rows, int64_t dispatch_chunks, bool all_gather,
                          std::optional<int64_t> shuffle_seed, bool /*keep_pre_activation*/) {
  return std::get<0>(routed_experts_forward(token, weight, expert_of_choice, gate_up, down, group, experts, overload,
                                            max_tokens_per_rank_factor, spill_threshold, spill_least_rows,
                                            dispatch_chunks, all_gather, shuffle_seed, false));
}
// NOLINTEND(performance-unnecessary-value-param)

at::Tensor routed_experts_with_gradient(const at::Tensor& token, const at::Tensor& weight,
                                        const at::Tensor& expert_of_choice, const at::Tensor& gate_up,
                                        const at::Tensor& down, std::string group, int64_t experts,
                                        double gradient_scale, std::string overload,
                                        std::optional<double> max_tokens_per_rank_factor,
                                        std::optional<double> spill_threshold, std::optional<int64_t> spill_least_rows,
                                        int64_t dispatch_chunks, bool all_gather, std::optional<int64_t> shuffle_seed,
                                        bool keep_pre_activation) {
  const bool differentiated = at::GradMode::is_enabled() && (token.requires_grad() || weight.requires_grad() ||
                                                             gate_up.requires_grad() || down.requires_grad());
  return RoutedExpertsFunction::apply(
      token, weight, expert_of_choice, gate_up, down,
      Settings{std::move(group), experts, std::move(overload), max_tokens_per_rank_factor, spill_threshold,
               spill_least_rows, dispatch_chunks, all_gather, shuffle_seed},
      gradient_scale, keep_pre_activation && differentiated);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.def(
      "routed_experts_forward(Tensor token, Tensor weight, Tensor expert_of_choice, Tensor gate_up, Tensor down, str "
      "group, int experts, str overload, float? max_tokens_per_rank_factor, float? spill_threshold, int? "
      "spill_least_rows, int dispatch_chunks, bool all_gather, int? shuffle_seed, bool keep_pre_activation) -> "
      "(Tensor, "
      "Tensor[])");
  library.def(
      "routed_experts(Tensor token, Tensor weight, Tensor expert_of_choice, Tensor gate_up, Tensor down, str group, "
      "int experts, float gradient_scale, str overload, float? max_tokens_per_rank_factor, float? spill_threshold, "
      "int? spill_least_rows, int dispatch_chunks, bool all_gather, int? shuffle_seed, bool keep_pre_activation) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(conclave, CompositeExplicitAutograd, library) {
  library.impl("routed_experts_forward", routed_experts_forward);
  library.impl("routed_experts", routed_experts);
}

TORCH_LIBRARY_IMPL(conclave, Autograd, library) {
  library.impl("routed_experts", routed_experts_with_gradient);
}

}  // namespace conclave

// torch.ops.conclave.experts: the SwiGLU experts of one rank over its dispatched rows, with their backward.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include "base/error.h"
#include "moe/experts.h"

namespace conclave {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::vector<int64_t> numbers_of(const at::Tensor& tensor) {
  const auto* first = tensor.const_data_ptr<int64_t>();
  return {first, first + tensor.numel()};
}

void check(const at::Tensor& row, const at::Tensor& row_weight, const ExpertWeights& weights,
           const std::vector<int64_t>& rows_per_expert) {
  const at::Tensor &gate_up = weights.gate_up_LJH, &down = weights.down_LHI;
  check_invariant(row.dim() == 2 && gate_up.dim() == 3 && down.dim() == 3,
                  "rows, gate_up and down have {}, {}, {} dims", row.dim(), gate_up.dim(), down.dim());
  const int64_t experts = gate_up.size(0), hidden = row.size(1), intermediate = down.size(2);
  check_invariant(down.size(0) == experts && gate_up.size(1) == 2 * intermediate && gate_up.size(2) == hidden &&
                      down.size(1) == hidden && static_cast<int64_t>(rows_per_expert.size()) == experts,
                  "rows of {}, gate_up [{},{},{}], down [{},{},{}] and {} experts with rows do not fit", hidden,
                  gate_up.size(0), gate_up.size(1), gate_up.size(2), down.size(0), down.size(1), down.size(2),
                  rows_per_expert.size());
  check_invariant(row.scalar_type() == gate_up.scalar_type() && row.scalar_type() == down.scalar_type() &&
                      row_weight.scalar_type() == at::kFloat,
                  "rows and expert weights are of one dtype, row weights fp32");
  const int64_t rows = std::accumulate(rows_per_expert.begin(), rows_per_expert.end(), int64_t{0});
  check_invariant(rows == row.size(0) && rows == row_weight.numel(), "{} rows, {} weights, {} rows of experts",
                  row.size(0), row_weight.numel(), rows);
}

// The second result is the pre-activation [R,2I]; empty when it is not kept.
std::tuple<at::Tensor, at::Tensor> experts_forward_operator(const at::Tensor& row, const at::Tensor& row_weight,
                                                            const at::Tensor& gate_up, const at::Tensor& down,
                                                            const at::Tensor& rows_per_expert, bool keep) {
  const ExpertWeights weights{gate_up.contiguous(), down.contiguous()};
  const std::vector<int64_t> rows = numbers_of(rows_per_expert);
  check(row, row_weight, weights, rows);
  ExpertOutput out = experts_forward({row.contiguous(), row_weight.contiguous()}, rows, weights,
                                     keep ? PreActivation::kept : PreActivation::repeated);
  if (!keep) out.gate_up_RJ = at::empty({0}, row.options());
  return {out.row_RH, out.gate_up_RJ};
}

class ExpertsFunction : public torch::autograd::Function<ExpertsFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& row, const at::Tensor& row_weight,
                            const at::Tensor& gate_up, const at::Tensor& down, const at::Tensor& rows_per_expert,
                            double gradient_scale, bool keep) {
    static const auto below = c10::Dispatcher::singleton()
                                  .findSchemaOrThrow("conclave::experts_forward", "")
                                  .typed<decltype(experts_forward_operator)>();
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, pre_activation] = below.call(row, row_weight, gate_up, down, rows_per_expert, keep);
    context->save_for_backward({row, row_weight, gate_up, down, pre_activation});
    context->saved_data["rows_per_expert"] = rows_per_expert;
    context->saved_data["gradient_scale"] = gradient_scale;
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grad) {
    variable_list saved = context->get_saved_variables();
    // The engine's backward puts its results where these lie. A graph that is kept will want them again.
    const bool again = torch::autograd::get_current_graph_task_keep_graph();
    const auto consumable = [again](const at::Tensor& tensor) { return again ? tensor.clone() : tensor.contiguous(); };
    const ExpertRows rows{consumable(saved[0]), saved[1].contiguous()};
    const ExpertWeights weights{saved[2].contiguous(), saved[3].contiguous()};
    const at::Tensor gate_up =
        saved[4].numel() == rows.row_RH.size(0) * weights.gate_up_LJH.size(1) ? consumable(saved[4]) : at::Tensor();
    const auto fp32 = [](const at::Tensor& weight) {
      return at::empty(weight.sizes(), weight.options().dtype(at::kFloat));
    };
    ExpertGradients gradients{{fp32(weights.gate_up_LJH)}, {fp32(weights.down_LHI)}};
    const ExpertRows result =
        experts_backward(grad[0].contiguous(), rows, gate_up,
                         numbers_of(context->saved_data["rows_per_expert"].toTensor()), weights, gradients);
    const double scale = context->saved_data["gradient_scale"].toDouble();
    const auto scaled = [scale](const Gradient& gradient, const at::Tensor& weight) {
      if (scale != 1) gradient.tensor.mul_(scale);
      return gradient.tensor.to(weight.scalar_type());
    };
    return {result.row_RH,
            result.weight_R,
            scaled(gradients.gate_up_LJH, weights.gate_up_LJH),
            scaled(gradients.down_LHI, weights.down_LHI),
            {},
            {},
            {}};
  }
};

at::Tensor experts(const at::Tensor& row, const at::Tensor& row_weight, const at::Tensor& gate_up,
                   const at::Tensor& down, const at::Tensor& rows_per_expert, double /*gradient_scale*/) {
  return std::get<0>(experts_forward_operator(row, row_weight, gate_up, down, rows_per_expert, /*keep=*/false));
}

at::Tensor experts_with_gradient(const at::Tensor& row, const at::Tensor& row_weight, const at::Tensor& gate_up,
                                 const at::Tensor& down, const at::Tensor& rows_per_expert, double gradient_scale) {
  const bool differentiated = at::GradMode::is_enabled() && (row.requires_grad() || row_weight.requires_grad() ||
                                                             gate_up.requires_grad() || down.requires_grad());
  return ExpertsFunction::apply(row, row_weight, gate_up, down, rows_per_expert, gradient_scale, differentiated);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.def(
      "experts_forward(Tensor row, Tensor row_weight, Tensor gate_up, Tensor down, Tensor rows_per_expert, bool keep) "
      "-> (Tensor, Tensor)");
  library.def(
      "experts(Tensor row, Tensor row_weight, Tensor gate_up, Tensor down, Tensor rows_per_expert, float "
      "gradient_scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(conclave, CompositeExplicitAutograd, library) {
  library.impl("experts_forward", experts_forward_operator);
  library.impl("experts", experts);
}

TORCH_LIBRARY_IMPL(conclave, Autograd, library) {
  library.impl("experts", experts_with_gradient);
}

}  // namespace conclave

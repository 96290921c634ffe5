// torch.ops.conclave.rms_norm, linear and cross_entropy: the engine's kernels with their gradients, for modules of
// Transformers whose own operators take longer, or more memory.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/blocked_product.h"
#include "kernels/check.h"
#include "kernels/cross_entropy.h"
#include "kernels/linear.h"
#include "kernels/rms_norm.h"
#include "operators/plugin_kernels.h"

namespace conclave {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor rows_of(const at::Tensor& x) {
  return x.reshape({-1, x.size(-1)}).contiguous();
}

at::Tensor zeros_wide(const at::Tensor& like) {
  return at::zeros(like.sizes(), like.options().dtype(wide_dtype(like.scalar_type())));
}

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight, double eps) {
    const OperatorDevice device(x);
    const at::Tensor x_RH = rows_of(x), weight_H = weight.contiguous();
    const at::Tensor y = at::empty(x.sizes(), x.options(), at::MemoryFormat::Contiguous);
    const at::Tensor rstd_R = at::empty({x_RH.size(0)}, x.options().dtype(wide_dtype(x.scalar_type())));
    rms_norm_forward(y.view(x_RH.sizes()), rstd_R, x_RH, weight_H, eps);
    context->save_for_backward({x_RH, rstd_R, weight_H});
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grad) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x_RH = saved[0], &rstd_R = saved[1], &weight_H = saved[2];
    const OperatorDevice device(x_RH);
    const at::Tensor grad_x = grad[0].clone(at::MemoryFormat::Contiguous), grad_weight_H = zeros_wide(weight_H);
    rms_norm_backward_(grad_x.view(x_RH.sizes()), grad_weight_H, x_RH, rstd_R, weight_H);
    return {grad_x, grad_weight_H.to(weight_H.scalar_type()), {}};
  }
};

class Linear : public torch::autograd::Function<Linear> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight) {
    const OperatorDevice device(x);
    const at::Tensor x_RM = rows_of(x), weight_NM = weight.contiguous();
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = weight.size(0);
    const at::Tensor y = at::empty(sizes, x.options(), at::MemoryFormat::Contiguous);
    linear_forward(y.view({x_RM.size(0), weight.size(0)}), x_RM, weight_NM);
    context->save_for_backward({x_RM, weight_NM});
    context->saved_data["sizes"] = x.sizes().vec();
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grad) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x_RM = saved[0], &weight_NM = saved[1];
    const OperatorDevice device(x_RM);
    const at::Tensor grad_y_RN = grad[0].contiguous().view({x_RM.size(0), weight_NM.size(0)});
    at::Tensor grad_x, grad_weight_NM;
    if (context->needs_input_grad(0)) {
      grad_x = at::empty(context->saved_data["sizes"].toIntVector(), x_RM.options());
      linear_backward_input(grad_x.view(x_RM.sizes()), grad_y_RN, weight_NM);
    }
    if (context->needs_input_grad(1)) {
      grad_weight_NM = at::empty(weight_NM.sizes(), x_RM.options().dtype(wide_dtype(x_RM.scalar_type())));
      linear_backward_weight(grad_weight_NM, grad_y_RN, x_RM, /*accumulate=*/false);
      grad_weight_NM = grad_weight_NM.to(weight_NM.scalar_type());
    }
    return {grad_x, grad_weight_NM};
  }
};

// Neither pass makes a copy of the logits in another dtype; the gradient is the one tensor of their size.
class CrossEntropy : public torch::autograd::Function<CrossEntropy> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& logits, const at::Tensor& targets) {
    const OperatorDevice device(logits);
    const at::Tensor logits_TV = logits.contiguous(), targets_T = targets.contiguous();
    context->save_for_backward({logits_TV, targets_T});
    return cross_entropy_sum(logits_TV, targets_T);
  }

  static variable_list backward(AutogradContext* context, variable_list grad) {
    const variable_list saved = context->get_saved_variables();
    const OperatorDevice device(saved[0]);
    at::Tensor grad_logits_TV = saved[0].clone();
    cross_entropy_sum_with_gradient_(grad_logits_TV, saved[1], grad[0].item<double>());
    return {grad_logits_TV, {}};
  }
};

// x [...,H], weight [H] of one dtype.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return RmsNorm::apply(x, weight, eps);
}

// x [...,M], weight [N,M] of one dtype -> [...,N].
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight) {
  return Linear::apply(x, weight);
}

// logits [T,V], targets [T] -> the sum over the targets that are not -100, double.
at::Tensor cross_entropy_of(const at::Tensor& logits, const at::Tensor& targets) {
  return CrossEntropy::apply(logits, targets);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  library.def("linear(Tensor x, Tensor weight) -> Tensor");
  library.def("cross_entropy(Tensor logits, Tensor targets) -> Tensor");
  // Whether products on this CPU are the engine's own, and not the library's that PyTorch calls as well.
  library.def("multiplies_in_blocks(ScalarType dtype) -> bool",
              [](at::ScalarType dtype) { return cpu::multiplies_in_blocks(dtype); });
}

TORCH_LIBRARY_IMPL(conclave, CompositeImplicitAutograd, library) {
  library.impl("rms_norm", rms_norm);
  library.impl("linear", linear);
  library.impl("cross_entropy", cross_entropy_of);
}

}  // namespace conclave

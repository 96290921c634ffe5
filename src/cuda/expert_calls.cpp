#include "cuda/expert_calls.h"

#include "cuda/launches.h"
#include "cuda/tensor_pointers.h"

namespace conclave::cuda {
namespace {

ClampedShape clamped_shape(const ClampedSwiglu& shape) {
  return {static_cast<float>(shape.limit), static_cast<float>(shape.slope)};
}

void clamped_swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                            const ClampedSwiglu& shape) {
  cuda::clamped_swiglu_forward(current_stream(), element_of(out_RI), out_RI.data_ptr(), gate_up_RJ.data_ptr(),
                               data<float>(weight_R), out_RI.size(0), out_RI.size(1), clamped_shape(shape));
}

void clamped_swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                             const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                             const ClampedSwiglu& shape) {
  cuda::clamped_swiglu_backward(current_stream(), element_of(grad_out_RI), grad_gate_up_RJ.data_ptr(),
                                activation_RI.data_ptr(), data<float>(grad_weight_R), grad_out_RI.data_ptr(),
                                gate_up_RJ.data_ptr(), data<float>(weight_R), grad_out_RI.size(0), grad_out_RI.size(1),
                                clamped_shape(shape));
}

BiasShape bias_shape(const at::Tensor& row_RN, const at::Tensor& bias_LN, const at::Tensor& ends_L) {
  return {row_RN.size(0),      row_RN.size(1),  bias_LN.size(0), data_or_null<int32_t>(ends_L),
          element_of(bias_LN), row_RN.stride(0)};
}

void add_bias(const at::Tensor& y_RN, const at::Tensor& bias_LN, const at::Tensor& scale_R, const at::Tensor& ends_L) {
  cuda::add_bias(current_stream(), element_of(y_RN), y_RN.data_ptr(), bias_LN.data_ptr(), data_or_null<float>(scale_R),
                 bias_shape(y_RN, bias_LN, ends_L));
}

void bias_backward(const at::Tensor& grad_bias_LN, const at::Tensor& grad_y_RN, bool accumulate,
                   const at::Tensor& scale_R, const at::Tensor& ends_L) {
  cuda::bias_backward(current_stream(), element_of(grad_y_RN), data<float>(grad_bias_LN), grad_y_RN.data_ptr(),
                      data_or_null<float>(scale_R), accumulate, bias_shape(grad_y_RN, grad_bias_LN, ends_L));
}

void bias_scale_backward_add(const at::Tensor& grad_scale_R, const at::Tensor& grad_y_RN, const at::Tensor& bias_LN,
                             const at::Tensor& ends_L) {
  cuda::bias_scale_backward_add(current_stream(), element_of(grad_y_RN), data<float>(grad_scale_R),
                                grad_y_RN.data_ptr(), bias_LN.data_ptr(), bias_shape(grad_y_RN, bias_LN, ends_L));
}

}  // namespace

void add_expert_calls(Kernels& table) {
  table.clamped_swiglu_forward = clamped_swiglu_forward;
  table.clamped_swiglu_backward = clamped_swiglu_backward;
  table.add_bias = add_bias;
  table.bias_backward = bias_backward;
  table.bias_scale_backward_add = bias_scale_backward_add;
}

}  // namespace conclave::cuda

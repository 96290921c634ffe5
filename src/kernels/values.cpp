#include "kernels/values.h"

#include <ATen/ATen.h>

#include "kernels/kernels.h"

namespace conclave {

void copy_values(const at::Tensor& to, const at::Tensor& from) {
  kernels_of(to.device().type()).copy(to, from);
}

void add_values(const at::Tensor& to, const at::Tensor& from) {
  kernels_of(to.device().type()).add(to, from);
}

at::Tensor take_values(const at::Tensor& values, const at::Tensor& index_R) {
  return kernels_of(values.device().type()).take(values, index_R);
}

at::Tensor to_host(const at::Tensor& tensor, const at::Tensor& assumed) {
  return kernels_of(tensor.device().type()).to_host(tensor, assumed);
}

double value_of(const at::Tensor& number) {
  return to_host(number).item<double>();
}

void reference::copy(const at::Tensor& to, const at::Tensor& from) {
  to.copy_(from);
}

void reference::add(const at::Tensor& to, const at::Tensor& from) {
  to.add_(from);
}

at::Tensor reference::take(const at::Tensor& values, const at::Tensor& index_R) {
  return values.flatten().index_select(0, index_R);
}

at::Tensor reference::to_host(const at::Tensor& tensor, const at::Tensor& /*assumed*/) {
  return tensor.to(at::kCPU);
}

}  // namespace conclave

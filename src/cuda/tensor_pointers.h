// From tensors to what the .cu files take.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/launches.h"

namespace conclave::cuda {

inline Element element_of(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat ? Element::fp32 : Element::bf16;
}

template <class T>
T* data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <class T>
T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? data<T>(tensor) : nullptr;
}

}  // namespace conclave::cuda

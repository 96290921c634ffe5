// From tensors to what launches take: pointers, elements and strides.
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

// A matrix whose rows lie any distance apart.
inline Matrix matrix_of(const at::Tensor& rows) {
  return {rows.defined() ? rows.data_ptr() : nullptr, rows.defined() ? rows.stride(0) : 0};
}

}  // namespace conclave::cuda

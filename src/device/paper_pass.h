// What all but products cost on paper: the bytes that they read and write.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>

#include "device/paper_device.h"

namespace conclave::paper {

inline double bytes_of(std::initializer_list<at::Tensor> tensors) {
  double bytes = 0;
  for (const at::Tensor& tensor : tensors)
    if (tensor.defined()) bytes += static_cast<double>(tensor.nbytes());
  return bytes;
}

// A pass over these tensors.
inline void pass(std::initializer_list<at::Tensor> tensors) {
  paper_device().clock().pass(bytes_of(tensors));
}

}  // namespace conclave::paper

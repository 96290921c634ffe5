// The place a backward pass puts a parameter's gradient.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

struct Gradient {
  at::Tensor tensor;        // fp32, shaped as the parameter; usually a view of a flat buffer
  bool accumulate = false;  // false: the content is undefined and must be written; true: add to it

  // For a backward that can only add.
  at::Tensor& zeroed() {
    if (!accumulate) tensor.zero_();
    accumulate = true;
    return tensor;
  }
};

}  // namespace conclave

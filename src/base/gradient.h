// The place a backward pass puts a parameter's gradient.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

struct Gradient {
  at::Tensor
      tensor;  // fp32, shaped as the parameter; usually a view of a flat buffer. Undefined: the parameter is frozen
  bool accumulate = false;  // false: the content is undefined and must be written; true: add to it

  // Whether somebody asks for it: of a frozen parameter nothing is computed.
  bool is_wanted() const { return tensor.defined(); }

  // For a backward that can only add. Of a frozen parameter it stays undefined.
  at::Tensor& zeroed() {
    if (!accumulate && is_wanted()) tensor.zero_();
    accumulate = true;
    return tensor;
  }
};

}  // namespace conclave

// Values that are copied, added or looked up without arithmetic worth a kernel of its own, and what the host reads of
// them.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

// to = from, in to's dtype; to += from. Equal sizes.
void copy_values(const at::Tensor& to, const at::Tensor& from);
void add_values(const at::Tensor& to, const at::Tensor& from);

// [R]: values.flatten()[index[r]], index [R] int32.
at::Tensor take_values(const at::Tensor& values, const at::Tensor& index_R);

// The tensor where the host reads it: waits for the device. On paper nothing was computed: then it is `assumed`, a
// tensor of the host, or ones where that is undefined.
at::Tensor to_host(const at::Tensor& tensor, const at::Tensor& assumed = {});
// Of a tensor of one number.
double value_of(const at::Tensor& number);

namespace reference {
void copy(const at::Tensor& to, const at::Tensor& from);
void add(const at::Tensor& to, const at::Tensor& from);
at::Tensor take(const at::Tensor& values, const at::Tensor& index_R);
at::Tensor to_host(const at::Tensor& tensor, const at::Tensor& assumed);
}  // namespace reference

}  // namespace conclave

#include "run/whole_parameter.h"

#include <ATen/ATen.h>

namespace conclave {

at::Tensor whole_of_parts(ParallelJob& job, int64_t numel, const std::function<void(at::Tensor&)>& put) {
  at::Tensor whole = at::zeros({numel}, at::device(job.device()).dtype(at::kFloat));
  put(whole);
  job.axes().world().all_reduce(whole).wait();
  return whole.to(at::kCPU);
}

at::Tensor whole_parameter(ParallelJob& job, const std::vector<TensorSlice>& slices, const std::string& name,
                           const std::vector<int64_t>& shape) {
  return whole_of_parts(job, c10::multiply_integers(shape),
                        [&](at::Tensor& whole) {
                          for (const TensorSlice& slice : slices)
                            if (slice.name == name) whole.narrow(0, slice.begin, slice.data.numel()).copy_(slice.data);
                        })
      .view(shape);
}

}  // namespace conclave

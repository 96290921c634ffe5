// In this program the entries of src/kernels choose, for tensors on the CPU, kernels that copy them to the GPU, run
// ours there and copy the results back: every test of tests/unit/kernels is a test of the real device.
#include "device_kernels.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <vector>

#include "base/error.h"
#include "device/cuda_plugin.h"
#include "kernel_test.h"
#include "kernels/kernels.h"

namespace conclave {
namespace {

// The tensors of one call on the device. One that is given twice is one there too: outputs may be inputs.
class Moved {
 public:
  at::Tensor operator()(const at::Tensor& host) {
    if (!host.defined()) return host;
    for (const auto& [known, on_device] : pairs_)
      if (known.is_same(host) || (known.data_ptr() == host.data_ptr() && known.sizes() == host.sizes()))
        return on_device;
    // At an address as even as it has here: the kernels look at it.
    const bool even = reinterpret_cast<uintptr_t>(host.data_ptr()) % 16 == 0;
    const int64_t before = even ? 0 : 1;
    at::Tensor on_device = at::empty({before + host.numel()}, host.options().device(at::kCUDA));
    on_device = on_device.narrow(0, before, host.numel()).view(host.sizes()).copy_(host);
    pairs_.emplace_back(host, on_device);
    return on_device;
  }
  RotaryTable operator()(const RotaryTable& host) {
    return {(*this)(host.cos_SD), (*this)(host.sin_SD), host.interleaved, (*this)(host.position_T)};
  }
  Routing operator()(const Routing& host) {
    return {(*this)(host.score_TE), (*this)(host.logsumexp_T), (*this)(host.expert_of_choice_TK),
            (*this)(host.weight_TK)};
  }
  Fp8Matrix operator()(const Fp8Matrix& host) { return {(*this)(host.value_XS), (*this)(host.scale), host.blocks}; }
  template <class T>
  T operator()(const T& number) {
    return number;
  }

  void copy_back() {
    for (const auto& [host, on_device] : pairs_) host.copy_(on_device);
  }

 private:
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs_;
};

at::Tensor returned(const at::Tensor& tensor) {
  return tensor.to(at::kCPU);
}
ExpertOrder returned(const ExpertOrder& order) {
  return {order.choice_of_row_R.to(at::kCPU), order.row_of_choice_TK.to(at::kCPU), order.count_E};
}
Routing returned(const Routing& routing) {
  return {routing.score_TE.to(at::kCPU), routing.logsumexp_T.to(at::kCPU), routing.expert_of_choice_TK.to(at::kCPU),
          routing.weight_TK.to(at::kCPU)};
}
RoutingStatistics returned(const RoutingStatistics& statistics) {
  return {statistics.count_E.to(at::kCPU), statistics.probability_sum_E.to(at::kCPU),
          statistics.logsumexp_square_sum.to(at::kCPU), statistics.confidence_sum.to(at::kCPU)};
}

Fp8Matrix returned(const Fp8Matrix& matrix) {
  return {matrix.value_XS.to(at::kCPU), matrix.scale.to(at::kCPU), matrix.blocks};
}

template <auto member, class R, class... A>
R call_on_device(A... arguments) {
  Moved moved;
  const auto kernel = load_cuda_plugin(nullptr)->kernels->*member;
  if constexpr (std::is_void_v<R>) {
    kernel(moved(arguments)...);
    moved.copy_back();
  } else {
    const R result = kernel(moved(arguments)...);
    moved.copy_back();
    return returned(result);
  }
}

template <auto member, class R, class... A>
constexpr auto through_device(R (*Kernels::*)(A...)) {
  return &call_on_device<member, R, A...>;
}

const Kernels kernels_on_device = [] {
  Kernels table = reference_kernels;
#define CONCLAVE_ON_DEVICE(op) table.op = through_device<&Kernels::op>(&Kernels::op)
  CONCLAVE_ON_DEVICE(swiglu_forward);
  CONCLAVE_ON_DEVICE(swiglu_backward);
  CONCLAVE_ON_DEVICE(clamped_swiglu_forward);
  CONCLAVE_ON_DEVICE(clamped_swiglu_backward);
  CONCLAVE_ON_DEVICE(add_bias);
  CONCLAVE_ON_DEVICE(bias_backward);
  CONCLAVE_ON_DEVICE(bias_scale_backward_add);
  CONCLAVE_ON_DEVICE(rms_norm_forward);
  CONCLAVE_ON_DEVICE(rms_norm_repeat);
  CONCLAVE_ON_DEVICE(rms_norm_backward);
  CONCLAVE_ON_DEVICE(sink_forward_);
  CONCLAVE_ON_DEVICE(sink_backward);
  CONCLAVE_ON_DEVICE(expand_latent);
  CONCLAVE_ON_DEVICE(collect_latent);
  CONCLAVE_ON_DEVICE(rotary_);
  CONCLAVE_ON_DEVICE(cross_entropy);
  CONCLAVE_ON_DEVICE(cross_entropy_with_gradient_);
  CONCLAVE_ON_DEVICE(adamw_step);
  CONCLAVE_ON_DEVICE(sum_of_squares);
  CONCLAVE_ON_DEVICE(gather_rows);
  CONCLAVE_ON_DEVICE(pack_rows);
  CONCLAVE_ON_DEVICE(unpack_rows);
  CONCLAVE_ON_DEVICE(combine_rows);
  CONCLAVE_ON_DEVICE(combine_messages);
  CONCLAVE_ON_DEVICE(order_by_expert);
  CONCLAVE_ON_DEVICE(route);
  CONCLAVE_ON_DEVICE(route_to);
  CONCLAVE_ON_DEVICE(routing_statistics);
  CONCLAVE_ON_DEVICE(route_backward);
  CONCLAVE_ON_DEVICE(embedding_forward);
  CONCLAVE_ON_DEVICE(embedding_backward);
  CONCLAVE_ON_DEVICE(quantize_rows);
  CONCLAVE_ON_DEVICE(quantize_columns);
  CONCLAVE_ON_DEVICE(quantize_weight);
  CONCLAVE_ON_DEVICE(fp8_product);
  CONCLAVE_ON_DEVICE(weight_gradient);
  CONCLAVE_ON_DEVICE(overlapping);
#undef CONCLAVE_ON_DEVICE
  return table;
}();

}  // namespace

void use_kernels_through_device() {
  use_kernels(at::kCPU, &kernels_on_device);
}

KernelsAsInTraining::KernelsAsInTraining() {
  use_kernels(at::kCPU, nullptr);
  use_kernels(at::kCUDA, load_cuda_plugin(nullptr)->kernels);
}

}  // namespace conclave

int main(int argc, char** argv) {
  std::string why_not;
  if (conclave::cuda_device_count(&why_not) == 0) {
    std::fprintf(stderr, "no GPU to test on: %s\n", why_not.c_str());
    return conclave::exit_user_error;
  }
  conclave::load_cuda_plugin(nullptr)->use_device(0);
  conclave::use_kernels_through_device();
  conclave::breach_breaks_device = true;
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
